"""Decides how an attention problem is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import dataclasses
import enum
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ...errors import UnsupportedError
from ...launch import CHUNK_BYTES, LANES, Capabilities, Launch, ParamStruct
from ...source import Define
from ..dtypes import ELEMENTS, accumulator, refuse_dtype
from ..quantize.formats import Stored

__all__ = [
    "BACKWARD_DKV",
    "BACKWARD_DMASK",
    "BACKWARD_DQ",
    "FORWARD",
    "MAX_HEAD_SIZE",
    "Cache",
    "Forward",
    "Hold",
    "Kernel",
    "Layout",
    "MaskLayout",
    "Problem",
    "Rotation",
    "Sequences",
    "Tiling",
    "Traffic",
    "backward",
    "default_tiling",
    "delta",
    "forward",
    "forward_in_parts",
    "packed",
    "predicted_traffic",
    "shape_class",
    "tilings",
    "walk",
]

MAX_HEAD_SIZE = 576

_FOLDER = "ops/attention"
_TILE = 16  # rows and columns of the matrix layer's unit
#: 32-bit registers a lane may spend on rows and accumulators before rows are read again for each block instead, unless
#: a tiling says otherwise.
_REGISTERS = 128
#: Threads of a threadgroup of the kernel without tiles.
_DELTA_THREADS = 128
#: Columns of what warpgroups sum up, and those of the panels in which they read what they multiply.
_WARPGROUP_COLUMNS, _PANEL = frozenset({64, 128, 256}), 64
#: Sequences up to this length leave most of a GPU idle, so that other tilings may win.
_SHORT = 128

#: Keys below which cutting them into further parts costs more than it brings: of each part, and for each of its
#: queries, so that parts of the output, written and read once, are at most a quarter of what is read of half keys.
_LEAST_SPLIT_KEYS, _SPLIT_KEYS_A_QUERY = 128, 8
#: Threadgroups that share out columns, at most.
_MOST_COLUMN_BLOCKS = 8
#: Threadgroups that a core of a GPU can have at once, at least.
_GROUPS_A_CORE = 2

_MASK_ELEMENTS = {torch.bool: "bool", **ELEMENTS}


@dataclass(frozen=True)
class Layout:
    """Where the rows of a ``[B, H, L, D]`` tensor lie: strides in elements of batch, head and row."""

    strides: tuple[int, int, int]
    #: Every row starts at a multiple of 16 bytes and is a whole number of 16 bytes long.
    aligned: bool = False


@dataclass(frozen=True)
class MaskLayout:
    """An ``attn_mask`` over ``[B, H, Lq, Lk]``; strides in elements, 0 where broadcast.

    Attributes:
        sizes: of its own dimensions, 1 where broadcast; what its gradient is summed to.
    """

    dtype: torch.dtype
    strides: tuple[int, int, int, int]
    sizes: tuple[int, int, int, int] = (1, 1, 1, 1)


@dataclass(frozen=True)
class Rotation:
    """By what queries and keys are turned as they are loaded; pairs as in ``ops/rope``.

    Attributes:
        pairs: R / 2, more than 0.
        query_position: of the first query; the first key's is 0.
    """

    pairs: int
    interleaved: bool
    query_position: int


@dataclass(frozen=True)
class Sequences:
    """What a plan depends on where a table says which rows are a sequence.

    Attributes:
        count: of sequences.
        queries, keys: at least as many as the longest one has.
        of_queries: whether the table says so of queries, too.
    """

    count: int
    queries: int
    keys: int
    of_queries: bool


@dataclass(frozen=True)
class Cache:
    """Keys and values in pages, or in fewer bits than they are computed with.

    Attributes:
        stored: how numbers are stored; where they are quantized, layouts of keys and values count bytes.
        group_size: columns that share a scale, where the format has groups; else 0.
        scale_strides: of batch (or page), head and row, for the scales of keys and of values.
        page_size: rows of a page, 0 where there are none; the batches of the tensors are pages then.
        pages: of the tensors.
        table_pages: entries of the table for each sequence.
    """

    stored: Stored = Stored.ELEMENTS
    group_size: int = 0
    scale_strides: tuple[tuple[int, int, int], tuple[int, int, int]] = ((0, 0, 0), (0, 0, 0))
    page_size: int = 0
    pages: int = 0
    table_pages: int = 0

    def defines(self) -> tuple[Define, ...]:
        """Those of ``cache.h``."""
        group = (("STORED_GROUP", self.group_size),) if self.group_size else ()
        return (("PAGED", int(self.page_size > 0)), ("STORED", int(self.stored)), *group)


_NO_CACHE = Cache()


@dataclass(frozen=True)
class Problem:
    """Everything about a call that a plan may depend on, sizes as in the kernels.

    Attributes:
        causal_offset: the last key that query ``i`` sees is ``i + causal_offset``; ``None`` when there is no last.
        layouts: of ``q k v o`` and, in the backward pass, ``do dq dk dv``.
        window_offset: the first one is ``i + window_offset``; ``None`` when there is no first.
        diagonal: query ``i`` stands at key ``i + diagonal``, from where ALiBi measures distance.
        softcap: scores are kept within it; 0 for none.
        alibi: whether each head has a slope.
        sinks: whether each head has a sink.
        dropout_p: the share of weights that are dropped.
        sequences: ``None`` where each batch is one.
        bottom_right: whether the last query of each sequence stands at its last key, where lengths are in a table;
            otherwise the offsets say so.
        cache: of keys and values; the forward pass alone takes one.
    """

    dtype: torch.dtype
    batch: int
    query_heads: int
    key_heads: int
    queries: int
    keys: int
    head_size: int
    value_head_size: int
    scale: float
    causal_offset: int | None
    mask: MaskLayout | None
    layouts: tuple[Layout, ...]
    rotation: Rotation | None = None
    window_offset: int | None = None
    diagonal: int = 0
    softcap: float = 0.0
    alibi: bool = False
    sinks: bool = False
    dropout_p: float = 0.0
    sequences: Sequences | None = None
    bottom_right: bool = False
    cache: Cache = _NO_CACHE

    @property
    def accumulator(self) -> str:
        return accumulator(self.dtype)

    @property
    def count(self) -> int:
        """Of sequences."""
        return self.sequences.count if self.sequences else self.batch

    @property
    def longest_queries(self) -> int:
        """At least as many as any sequence has."""
        return self.sequences.queries if self.sequences and self.sequences.of_queries else self.queries

    @property
    def longest_keys(self) -> int:
        """Likewise."""
        return self.sequences.keys if self.sequences else self.keys


class Hold(enum.IntEnum):
    """Where a simdgroup keeps its own rows, as in ``operand.h``."""

    NOWHERE = 0
    REGISTERS = 1
    STAGED = 2


@dataclass(frozen=True)
class Tiling:
    """How a kernel's work is cut up. Results do not depend on it, but for rounding; time does.

    Attributes:
        block: rows of a block, of two matrices.
        simdgroups: of a threadgroup.
        row_tiles: tiles of 16 rows that each of them keeps.
        hold: where they keep them.
        pad: whether the rows of staged tiles are 16 bytes apart, so that those of a column fall into different banks.
        buffers: 2 to copy a block while the one before it is used.
        stage_values: whether the numbers of each staged row, where there are such, are staged with it.
        staged: whether a threadgroup copies blocks to threadgroup memory; if not, its simdgroups read them from device
            memory, each for itself, and nothing else is staged either.
        heads_first: whether threadgroups that start together take the same block of neighbouring heads, which with
            grouped heads read the same keys, instead of neighbouring blocks of one head.
        column_blocks: threadgroups that share out the columns of what they sum, where accumulators for all of them
            would not fit in registers; each computes the weights for itself. 0 for the fewest.
    """

    block: int
    simdgroups: int = 4
    row_tiles: int = 1
    hold: Hold = Hold.REGISTERS
    pad: bool = True
    buffers: int = 1
    stage_values: bool = True
    staged: bool = True
    heads_first: bool = False
    column_blocks: int = 0

    @property
    def own(self) -> int:
        """Rows that a threadgroup keeps."""
        return _TILE * self.simdgroups * self.row_tiles

    @property
    def threads(self) -> int:
        return LANES * self.simdgroups

    def threadgroup_bytes(self, problem: Problem, kernel: Kernel) -> int:
        """Of all tiles and values."""
        if not self.staged:
            return 0
        widths = kernel.columns(problem, self)
        row, value_row = (n * problem.dtype.itemsize + self.pad * CHUNK_BYTES for n in (widths.d, widths.v))
        held = self.own * (row + (value_row if kernel.matrices == 2 else 0)) if self.hold == Hold.STAGED else 0
        values = kernel.values * max(problem.dtype.itemsize, 4) if self.stage_values else 0
        return held + self.buffers * self.block * (row + value_row + values)

    def defines(self) -> tuple[Define, ...]:
        """Those of ``copy.h``, ``operand.h``, ``block.h`` and ``block_pair.h``."""
        return (
            ("HEADS_FIRST", int(self.heads_first)),
            ("THREADS", self.threads),
            ("ROW_TILES", self.row_tiles),
            ("HOLD", int(self.hold)),
            ("PAD", int(self.pad)),
            ("BUFFERS", self.buffers),
            ("STAGED", int(self.staged)),
        )


class Columns(NamedTuple):
    """The defines ``BD BV SUM_D SUM_V`` of ``operand.h``."""

    d: int
    v: int
    sum_d: int
    sum_v: int


@dataclass(frozen=True)
class Kernel:
    """What the tiles of a kernel depend on.

    Attributes:
        name: of its file; the kernel itself has ``attention_`` in front.
        keeps_keys: whether its threadgroups keep keys and walk over queries, or the other way round.
        most_buffers: of a block.
        matrices: that a simdgroup keeps rows of: one as wide as keys and perhaps one as wide as values.
        sums_d, sums_v: whether it sums up a matrix as wide as keys, or values.
        most_columns: of what it sums up, so that accumulators fit in registers.
        values: numbers that are staged with each row of a block.
        mma: tiles on NVIDIA's matrix units by the bytes of an element, each with the largest head size it is for.
        wgmma: those for warpgroups, of elements of 16 bits.
    """

    name: str
    keeps_keys: bool
    most_buffers: int
    matrices: int
    sums_d: bool
    sums_v: bool
    most_columns: int
    values: int
    mma: Mapping[int, tuple[tuple[int, Tiling], ...]] = field(hash=False)
    wgmma: tuple[tuple[int, Tiling], ...] = field(default=(), hash=False)

    def column_blocks(self, problem: Problem, tiling: Tiling) -> int:
        """Threadgroups that share out the columns."""
        if tiling.column_blocks > 0:
            return tiling.column_blocks
        widest = max(self.sums_d * problem.head_size, self.sums_v * problem.value_head_size)
        return max(-(-widest // self.most_columns), 1)

    def columns(self, problem: Problem, tiling: Tiling) -> Columns:
        """What is staged and summed of a row, whole tiles."""
        blocks = self.column_blocks(problem, tiling)
        return _columns(problem.head_size, problem.value_head_size, blocks, self.sums_d, self.sums_v, self.matrices)


@functools.lru_cache(maxsize=1024)
def _columns(head_size: int, value_head_size: int, blocks: int, sums_d: bool, sums_v: bool, matrices: int) -> Columns:
    d = _padded(head_size, blocks if sums_d else 1)
    v = _padded(value_head_size, blocks if sums_v else 1)
    if matrices == 1:  # the forward pass has no use for the values of other blocks
        v //= blocks
        return Columns(d, v, d, v)
    return Columns(d, v, d // blocks if sums_d else d, v // blocks if sums_v else v)


FORWARD = Kernel(
    "forward",
    keeps_keys=False,
    most_buffers=1,
    matrices=1,
    sums_d=False,
    sums_v=True,
    most_columns=256,
    values=0,
    mma={
        2: (
            (64, Tiling(96, row_tiles=2, hold=Hold.STAGED)),
            (128, Tiling(64, row_tiles=2, hold=Hold.STAGED)),
            (256, Tiling(32, hold=Hold.STAGED)),
        ),
        4: (
            (64, Tiling(32, row_tiles=2, hold=Hold.STAGED)),
            (128, Tiling(16, row_tiles=2, hold=Hold.STAGED)),
        ),
    },
    wgmma=(
        (128, Tiling(128, hold=Hold.STAGED, pad=False)),
        (256, Tiling(64, simdgroups=8, hold=Hold.STAGED, pad=False)),
    ),
)
BACKWARD_DQ = Kernel(
    "backward_dq",
    keeps_keys=False,
    most_buffers=2,
    matrices=2,
    sums_d=True,
    sums_v=False,
    most_columns=256,
    values=0,
    mma={
        2: (
            (64, Tiling(64, row_tiles=2, hold=Hold.STAGED, buffers=2)),
            (128, Tiling(32, row_tiles=2, hold=Hold.STAGED, buffers=2)),
            (256, Tiling(32, hold=Hold.STAGED)),
        ),
        4: (
            (64, Tiling(32, row_tiles=2, hold=Hold.STAGED)),
            (128, Tiling(32, hold=Hold.STAGED)),
        ),
    },
    wgmma=(
        (128, Tiling(64, hold=Hold.STAGED, buffers=2, pad=False)),
        (256, Tiling(64, simdgroups=8, hold=Hold.STAGED, pad=False)),
    ),
)
BACKWARD_DKV = Kernel(
    "backward_dkv",
    keeps_keys=True,
    most_buffers=2,
    matrices=2,
    sums_d=True,
    sums_v=True,
    most_columns=128,
    values=2,
    mma={
        2: (
            (64, Tiling(48, row_tiles=2, hold=Hold.STAGED, buffers=2)),
            (128, Tiling(64, simdgroups=8, hold=Hold.STAGED, buffers=2)),
        ),
        4: (
            (64, Tiling(32, hold=Hold.STAGED)),
            (128, Tiling(16, hold=Hold.STAGED)),
        ),
    },
    wgmma=(
        (64, Tiling(128, hold=Hold.STAGED, pad=False)),
        (128, Tiling(64, hold=Hold.STAGED, buffers=2, pad=False)),
        (256, Tiling(64, simdgroups=8, hold=Hold.STAGED, pad=False)),
    ),
)

BACKWARD_DMASK = Kernel(
    "backward_dmask",
    keeps_keys=False,
    most_buffers=1,
    matrices=2,
    sums_d=False,
    sums_v=False,
    most_columns=256,
    values=0,
    mma={},
)

#: The tiles of all else, the largest first; those that fit best hold their rows in registers.
_SIMDGROUP_TILES = (
    Tiling(32),
    Tiling(16),
    Tiling(16, pad=False),
    Tiling(16, pad=False, stage_values=False),
    Tiling(16, pad=False, stage_values=False, staged=False),
)


@functools.cache
def _simdgroup_tiles(hold: Hold) -> list[Tiling]:
    return [dataclasses.replace(tiles, hold=hold) for tiles in _SIMDGROUP_TILES]


def _padded(columns: int, blocks: int) -> int:
    """Columns in whole tiles, as many for each of the blocks."""
    step = _TILE * blocks
    return -(-columns // step) * step


def default_tiling(problem: Problem, capabilities: Capabilities, kernel: Kernel = FORWARD) -> Tiling:
    """The first of the device's tilings that fits: what is launched where nothing was tuned.

    float64 exists for checks only and takes the tiles of float32, in twice the memory.

    Raises:
        UnsupportedError: not even the smallest fits.
    """
    # Whether a simdgroup's rows and its accumulators, 16 rows each, fit in registers.
    size, widths = min(problem.dtype.itemsize, 4), kernel.columns(problem, _SIMDGROUP_TILES[0])
    kept = widths.d + (widths.v if kernel.matrices == 2 else 0)
    summed = kernel.sums_d * widths.sum_d + kernel.sums_v * widths.sum_v
    words_a_lane = _TILE * (kept * size + summed * 4) // (4 * LANES)
    hold = Hold.REGISTERS if words_a_lane <= _REGISTERS else Hold.NOWHERE
    choices = _simdgroup_tiles(hold)
    if capabilities.matrix_unit == "mma":
        widest, fast = max(problem.head_size, problem.value_head_size), kernel.mma.get(problem.dtype.itemsize, ())
        together = tuple(x for x in kernel.wgmma if _by_warpgroups(problem, capabilities, kernel, x[1]))
        for candidates in (fast, together):
            choices = [tiles for largest, tiles in candidates if widest <= largest][:1] + choices
    for tiling in choices:
        if problem.cache != _NO_CACHE and not tiling.staged:
            continue
        if _stages_whole_rows(tiling, problem, kernel) and (
            tiling.threadgroup_bytes(problem, kernel) <= _available(problem, capabilities)
        ):
            return tiling
    raise UnsupportedError(
        f"head sizes {problem.head_size} and {problem.value_head_size} in {problem.dtype} with a cache: a block of "
        f"keys and values takes more than {capabilities.threadgroup_bytes} bytes of threadgroup memory"
    )


def _by_warpgroups(problem: Problem, capabilities: Capabilities, kernel: Kernel, tiling: Tiling) -> bool:
    """Whether four simdgroups at a time multiply together: elements of 16 bits, 16 rows to each, without padding.

    What they multiply is staged in whole panels, and the rows that a thread copies are eight apart, or a multiple.
    """
    widths = kernel.columns(problem, tiling)
    summed = {widths.sum_d} if kernel.sums_d else set()
    summed |= {widths.sum_v} if kernel.sums_v else set()
    return (
        capabilities.wgmma
        and bool(kernel.wgmma)
        and problem.dtype in (torch.float16, torch.bfloat16)
        and problem.cache == _NO_CACHE
        and tiling.hold == Hold.STAGED
        and not tiling.pad
        and (tiling.simdgroups % 4, tiling.row_tiles) == (0, 1)
        and {tiling.block} | summed <= _WARPGROUP_COLUMNS
        and all(n % _PANEL == 0 and tiling.threads % n == 0 for n in (widths.d, widths.v))
    )


def _stages_whole_rows(tiling: Tiling, problem: Problem, kernel: Kernel) -> bool:
    """Whether a threadgroup has a thread for each chunk of a row that it stages."""
    widest = max(kernel.columns(problem, tiling)[:2]) * problem.dtype.itemsize
    return not (tiling.staged or tiling.hold == Hold.STAGED) or widest <= tiling.threads * CHUNK_BYTES


def _available(problem: Problem, capabilities: Capabilities) -> int:
    """Bytes of threadgroup memory; twice as many for float64, whose tiles are those of float32."""
    return capabilities.threadgroup_bytes * (2 if problem.dtype == torch.float64 else 1)


def tilings(problem: Problem, capabilities: Capabilities, kernel: Kernel = FORWARD) -> Iterator[Tiling]:
    """Every combination that is worth a try, those included that `walk` will refuse for this problem.

    Where two cost the same, the one that comes first is to be preferred.
    """
    blocks = (16, 32, 48, 64, 96, 128) if capabilities.matrix_unit == "mma" else (16, 32, 64)
    holds = (Hold.REGISTERS, Hold.NOWHERE, Hold.STAGED)
    buffers = range(1, kernel.most_buffers + 1)
    values = (True, False) if kernel.values else (True,)
    for options in itertools.product(blocks, (1, 2, 4, 8), (1, 2), holds, (True, False), buffers, values):
        yield Tiling(*options)
    for block, simdgroups, row_tiles, hold in itertools.product(blocks, (1, 2, 4, 8), (1, 2), holds[:2]):
        yield Tiling(block, simdgroups, row_tiles, hold, pad=False, stage_values=not kernel.values, staged=False)
    if problem.query_heads > 1:
        for block, simdgroups, row_tiles in itertools.product(blocks, (1, 2, 4, 8), (1, 2)):
            yield Tiling(block, simdgroups, row_tiles, heads_first=True)
    fewest, most = kernel.column_blocks(problem, Tiling(_TILE)), max(problem.head_size, problem.value_head_size) // 64
    if kernel is not BACKWARD_DMASK:
        for block, simdgroups, column_blocks in itertools.product(blocks, (2, 4), {1, 2, 4} - {fewest}):
            if column_blocks <= max(most, 1):
                yield Tiling(block, simdgroups, column_blocks=column_blocks)


def shape_class(problem: Problem) -> str:
    """The name of the problems that share a tuned tiling; their dtype is named beside it."""
    causal = "" if problem.causal_offset is None else "-causal"
    causal += "" if problem.window_offset is None else "-window"
    queries, keys = ("short" if n <= _SHORT else "long" for n in (problem.longest_queries, problem.longest_keys))
    rotary = "" if problem.rotation is None else "-rotary"
    sizes = "-".join(str(_padded(n, 1)) for n in dict.fromkeys((problem.head_size, problem.value_head_size)))
    cache = "" if problem.cache == _NO_CACHE else "-cache"
    return f"D{sizes}{causal}{rotary}{cache}-{queries}-queries-{keys}-keys"


def _checked(tiling: Tiling | None, problem: Problem, capabilities: Capabilities, kernel: Kernel) -> Tiling:
    """The tiling, or the default one.

    Raises:
        UnsupportedError: the problem, or the tiling for it, cannot run on this device.
    """
    _refuse(problem, capabilities)
    if tiling is None:
        return default_tiling(problem, capabilities, kernel)
    if not 1 <= tiling.simdgroups <= capabilities.max_threads // LANES:
        raise UnsupportedError(f"{tiling.threads} threads; a threadgroup has 32 to {capabilities.max_threads}")
    if tiling.block < 1 or tiling.block % _TILE:
        raise UnsupportedError(f"a block of {tiling.block} rows is no multiple of {_TILE}")
    if tiling.row_tiles < 1 or tiling.hold not in tuple(Hold):
        raise UnsupportedError(f"{tiling.row_tiles} row tiles held in the way {tiling.hold}")
    if not 1 <= tiling.buffers <= kernel.most_buffers:
        raise UnsupportedError(f"{tiling.buffers} buffers; {kernel.name} has 1 to {kernel.most_buffers}")
    staged_too = {
        "rows that are kept": tiling.hold == Hold.STAGED,
        "a second buffer": tiling.buffers > 1,
        "values": tiling.stage_values and kernel.values > 0,
    }
    if not tiling.staged and any(staged_too.values()):
        reasons = " and ".join(name for name, wanted in staged_too.items() if wanted)
        raise UnsupportedError(f"blocks that are not staged, but {reasons}; they would need its memory and barriers")
    if not 0 <= tiling.column_blocks <= _MOST_COLUMN_BLOCKS:
        raise UnsupportedError(f"{tiling.column_blocks} blocks of columns; accepted: 0 to {_MOST_COLUMN_BLOCKS}")
    if not _stages_whole_rows(tiling, problem, kernel):
        raise UnsupportedError(f"{tiling.threads} threads; a staged row has more chunks")
    if problem.cache != _NO_CACHE and not tiling.staged:
        raise UnsupportedError("keys from a cache of pages or quantized numbers, but blocks that are not staged")
    used, available = tiling.threadgroup_bytes(problem, kernel), _available(problem, capabilities)
    if used > available:
        raise UnsupportedError(f"{used} bytes of threadgroup memory; the device has {available}")
    return tiling


def _params() -> ParamStruct:
    return ParamStruct.read(f"{_FOLDER}/args.h", "AttentionArgs")


def _words(problem: Problem, split_keys: int | None = None) -> tuple[int, ...]:
    unused = Layout((0, 0, 0))
    tensors = itertools.zip_longest(("q", "k", "v", "o", "do", "dq", "dk", "dv"), problem.layouts, fillvalue=unused)
    return _params().pack(
        {
            **{f"{name}_stride": layout.strides for name, layout in tensors},
            "k_scale_stride": problem.cache.scale_strides[0],
            "v_scale_stride": problem.cache.scale_strides[1],
            "page_size": problem.cache.page_size,
            "last_page": max(problem.cache.pages - 1, 0),
            "table_stride": problem.cache.table_pages,
            "mask_stride": problem.mask.strides if problem.mask else (0, 0, 0, 0),
            "mask_size": problem.mask.sizes if problem.mask else (1, 1, 1, 1),
            "batches": problem.batch,
            "query_heads": problem.query_heads,
            "group": problem.query_heads // problem.key_heads,
            "queries": problem.queries,
            "keys": problem.keys,
            "head_size": problem.head_size,
            "value_head_size": problem.value_head_size,
            "causal_offset": problem.causal_offset or 0,
            "window_offset": problem.window_offset or 0,
            "diagonal": problem.diagonal,
            "bottom_right": int(problem.sequences is not None and problem.bottom_right),
            "splits": 1 if split_keys is None else -(-problem.longest_keys // split_keys),
            "split_keys": problem.longest_keys if split_keys is None else split_keys,
            "split_rows": problem.batch * problem.query_heads * problem.queries,
            "rotary_pairs": problem.rotation.pairs if problem.rotation else 0,
            "query_position": problem.rotation.query_position if problem.rotation else 0,
            "drop_below": round(problem.dropout_p * 2**32),
            "keep_factor": 1 / (1 - problem.dropout_p),
            "softcap": problem.softcap,
            "scale": problem.scale,
        },
        problem.accumulator,
    )


def _common_defines(problem: Problem) -> tuple[Define, ...]:
    mask = 0 if problem.mask is None else 1 if problem.mask.dtype == torch.bool else 2
    return (
        ("ELEMENT", ELEMENTS[problem.dtype]),
        ("ACCUMULATOR", problem.accumulator),
        ("MASK", mask),
        ("MASK_ELEMENT", _MASK_ELEMENTS[problem.mask.dtype] if problem.mask else "bool"),
        ("CAUSAL", int(problem.causal_offset is not None)),
        ("WINDOW", int(problem.window_offset is not None)),
        ("ALIBI", int(problem.alibi)),
        ("SOFTCAP", int(problem.softcap > 0)),
        ("DROPOUT", int(problem.dropout_p > 0)),
        ("ROTARY", 0 if problem.rotation is None else 2 if problem.rotation.interleaved else 1),
        ("SEQUENCES", 0 if problem.sequences is None else 1 + problem.sequences.of_queries),
        ("ARGS_BYTES", _params().size),
    )


def _refuse(problem: Problem, capabilities: Capabilities) -> None:
    for head_size in (problem.head_size, problem.value_head_size):
        if not 1 <= head_size <= MAX_HEAD_SIZE:
            raise UnsupportedError(f"head size {head_size} is not in 1..{MAX_HEAD_SIZE}")
    refuse_dtype(problem.dtype, capabilities)
    if problem.sequences is not None and (problem.mask is not None or problem.rotation is not None):
        raise UnsupportedError("attn_mask or rotary together with lengths of sequences; accepted is one of them")
    if max(problem.queries, problem.keys) >= 2**31 - 2**10:
        raise UnsupportedError(f"sequence lengths {problem.queries} and {problem.keys} do not fit in 32 bits")


def packed(problem: Problem) -> Problem:
    """The same problem with the query heads that share a key head as one head of more queries, where strides allow it.

    Then they share tiles too, and their keys are read once. It takes rows that are evenly apart, that all see the same
    keys (no causal mask, which one query at the last key has not), and whose place and head decide nothing else.
    """
    group, queries = problem.query_heads // problem.key_heads, problem.queries
    unmasked = problem.causal_offset is None
    by_place = problem.window_offset is not None or problem.alibi or problem.sinks or problem.dropout_p > 0
    apart = problem.sequences is not None and problem.sequences.of_queries
    if group == 1 or not unmasked or by_place or apart or problem.rotation is not None:
        return problem
    (q, k, v, o), others = problem.layouts[:4], problem.layouts[4:]
    heads = [x.strides[1:3] for x in (q, o)] + ([problem.mask.strides[1:3]] if problem.mask else [])
    if queries > 1 and any(head != queries * row for head, row in heads):
        return problem
    q, o = (
        dataclasses.replace(x, strides=(x.strides[0], group * x.strides[1], _step(x.strides, queries))) for x in (q, o)
    )
    mask = problem.mask and dataclasses.replace(
        problem.mask,
        strides=(
            problem.mask.strides[0],
            group * problem.mask.strides[1],
            _step(problem.mask.strides, queries),
            problem.mask.strides[3],
        ),
    )
    return dataclasses.replace(
        problem,
        query_heads=problem.key_heads,
        queries=group * queries,
        mask=mask,
        layouts=(q, k, v, o, *others),
    )


def _step(strides: tuple[int, ...], queries: int) -> int:
    """Elements between the rows of heads that are packed; a single row's own stride is 0."""
    return strides[2] if queries > 1 else strides[1]


def _split_keys(problem: Problem, capabilities: Capabilities, tiling: Tiling) -> int | None:
    """The keys of each part but perhaps the last, ``None`` for all of them: whole blocks, about as many for each part.

    A grid that leaves half of the cores without a threadgroup is filled by cutting the keys.
    """
    keys = problem.longest_keys
    groups = problem.count * problem.query_heads * -(-problem.longest_queries // tiling.own)
    if groups == 0 or 2 * groups > capabilities.cores:
        return None
    least = max(_LEAST_SPLIT_KEYS, _SPLIT_KEYS_A_QUERY * min(problem.longest_queries, tiling.own))
    splits = min(_GROUPS_A_CORE * capabilities.cores // groups, keys // least)
    if splits <= 1:
        return None
    blocks = -(-keys // tiling.block)
    split_keys = -(-blocks // splits) * tiling.block
    return split_keys if split_keys < keys else None


@functools.lru_cache(maxsize=1024)
def walk(
    problem: Problem,
    capabilities: Capabilities,
    kernel: Kernel,
    tiling: Tiling | None = None,
    *,
    split_keys: int | None = None,
) -> Launch:
    """The launch of a kernel whose threadgroups keep rows of one side and walk over blocks of the other.

    Args:
        tiling: `default_tiling` where it is ``None``.
        split_keys: how many keys each part of a forward pass has that writes parts, whole blocks.

    Raises:
        UnsupportedError: with the reason.
    """
    return _launch(problem, capabilities, kernel, _checked(tiling, problem, capabilities, kernel), split_keys)


def _launch(
    problem: Problem, capabilities: Capabilities, kernel: Kernel, tiling: Tiling, split_keys: int | None
) -> Launch:
    """That of `walk`, once the tiling is known to fit."""
    if kernel is FORWARD:
        problem = packed(problem)
    splits = 1 if split_keys is None else -(-problem.longest_keys // split_keys)
    column_blocks = kernel.column_blocks(problem, tiling)
    (q, k, v), d_o = problem.layouts[:3], problem.layouts[4:5]
    walked: tuple[Layout, ...]
    kept: tuple[Layout, ...]
    if kernel.keeps_keys:
        queries, keys, length, heads = tiling.block, tiling.own, problem.longest_keys, problem.key_heads
        walked, kept = (q, *d_o), (k, v)
    else:
        queries, keys, length, heads = tiling.own, tiling.block, problem.longest_queries, problem.query_heads
        walked, kept = (k, v), (q, *d_o)[: kernel.matrices]
    copied = (walked if tiling.staged else ()) + (kept if tiling.hold == Hold.STAGED else ())
    defines: tuple[Define, ...] = (
        *_common_defines(problem),
        ("BQ", queries),
        ("BK", keys),
        *zip(("BD", "BV", "SUM_D", "SUM_V"), kernel.columns(problem, tiling), strict=True),
        ("COLUMN_BLOCKS", column_blocks),
        *tiling.defines(),
        ("WGMMA", int(_by_warpgroups(problem, capabilities, kernel, tiling))),
        ("ALIGNED", int(all(layout.aligned for layout in copied))),
    )
    if kernel is FORWARD:
        defines += (("OUTPUT", ELEMENTS[problem.dtype] if splits == 1 else problem.accumulator),)
        defines += (("SINKS", int(problem.sinks)), *problem.cache.defines())
    if kernel.values:
        defines += (("STAGE_VALUES", int(tiling.stage_values)),)
    groups = (column_blocks * splits * -(-length // tiling.own), heads)
    across, down = reversed(groups) if tiling.heads_first else groups
    return Launch(
        file=f"{_FOLDER}/{kernel.name}.metal",
        kernel=f"attention_{kernel.name}",
        defines=defines,
        words=_words(problem, split_keys),
        threads=(across * tiling.threads, down, problem.count),
        group_size=(tiling.threads, 1, 1),
        threadgroup_bytes=tiling.threadgroup_bytes(problem, kernel),
    )


def forward(problem: Problem, capabilities: Capabilities, tiling: Tiling | None = None) -> Launch:
    """The launch of ``attention_forward``, as `walk` plans it."""
    return walk(problem, capabilities, FORWARD, tiling)


@dataclass(frozen=True)
class Forward:
    """The forward pass.

    Attributes:
        launch: of ``attention_forward``.
        splits: how many parts it writes, to be merged; 1 where its result is whole.
        split_keys: of each part but perhaps the last.
    """

    launch: Launch
    splits: int
    split_keys: int


@functools.lru_cache(maxsize=1024)
def forward_in_parts(problem: Problem, capabilities: Capabilities, tiling: Tiling | None = None) -> Forward:
    """The launch of ``attention_forward``, with the keys cut into parts where it would leave most of the device idle.

    Parts are float32 (float64 for float64), contiguous ``[S, B, Hq, Lq, D]``, and so are their log-sum-exps.

    Raises:
        UnsupportedError: with the reason.
    """
    row, heads = problem.value_head_size, problem.query_heads
    contiguous = Layout((heads * problem.queries * row, problem.queries * row, row))
    parts = packed(dataclasses.replace(problem, layouts=(*problem.layouts[:3], contiguous, *problem.layouts[4:])))
    tiling = _checked(tiling, problem, capabilities, FORWARD)
    split_keys = _split_keys(parts, capabilities, tiling)
    launch = _launch(problem if split_keys is None else parts, capabilities, FORWARD, tiling, split_keys)
    if split_keys is None:
        return Forward(launch, 1, problem.longest_keys)
    return Forward(launch, -(-problem.longest_keys // split_keys), split_keys)


def _dmask_bytes(problem: Problem, tiling: Tiling) -> int:
    """Of threadgroup memory: the tiles and, in their place afterwards where queries are summed, a block of sums."""
    summed = problem.mask is not None and problem.mask.sizes[2] == 1
    sums = tiling.own * tiling.block * max(problem.dtype.itemsize, 4) if summed else 0
    return max(tiling.threadgroup_bytes(problem, BACKWARD_DMASK), sums)


@functools.lru_cache(maxsize=1024)
def on_mask(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``attention_backward_dmask``: `walk`'s, with the mask's elements shared out instead of the queries.

    Raises:
        UnsupportedError: with the reason.
    """
    if problem.mask is None or problem.mask.dtype == torch.bool:
        raise ValueError("only an additive mask has a gradient")
    batches, heads, queries, keys = problem.mask.sizes
    sum_queries, sum_keys = queries == 1, keys == 1
    tiling = default_tiling(problem, capabilities, BACKWARD_DMASK)
    launch = walk(problem, capabilities, BACKWARD_DMASK, tiling)
    blocks = (-(-queries // tiling.own), -(-keys // tiling.block), batches * heads)
    return dataclasses.replace(
        launch,
        defines=(*launch.defines, ("SUM_QUERIES", int(sum_queries)), ("SUM_KEYS", int(sum_keys))),
        threads=(blocks[0] * tiling.threads, *blocks[1:]),
        threadgroup_bytes=_dmask_bytes(problem, tiling),
    )


@functools.lru_cache(maxsize=1024)
def delta(problem: Problem, capabilities: Capabilities, lse_gradient: bool) -> Launch:
    """The launch of ``attention_backward_delta``; ``lse_gradient`` says whether lse has one.

    Raises:
        UnsupportedError: with the reason.
    """
    _refuse(problem, capabilities)
    like_any = dataclasses.replace(
        problem,
        mask=None,
        causal_offset=None,
        window_offset=None,
        rotation=None,
        softcap=0.0,
        alibi=False,
        dropout_p=0.0,
        sequences=None,
    )  # it sees no scores
    return Launch(
        file=f"{_FOLDER}/backward_delta.metal",
        kernel="attention_backward_delta",
        defines=(*_common_defines(like_any), ("LSE_GRADIENT", int(lse_gradient))),
        words=_words(problem),
        threads=(LANES * problem.queries, problem.query_heads, problem.batch),
        group_size=(_DELTA_THREADS, 1, 1),
        threadgroup_bytes=0,
    )


def backward(
    problem: Problem, capabilities: Capabilities, lse_gradient: bool, mask_gradient: bool = False
) -> tuple[Launch, ...]:
    """The launches of ``attention_backward_delta``, ``_dq``, ``_dkv`` and perhaps ``_dmask``, with default tilings.

    Raises:
        UnsupportedError: with the reason.
    """
    return (
        delta(problem, capabilities, lse_gradient),
        walk(problem, capabilities, BACKWARD_DQ),
        walk(problem, capabilities, BACKWARD_DKV),
        *((on_mask(problem, capabilities),) if mask_gradient else ()),
    )


@dataclass(frozen=True)
class Traffic:
    """Bytes that all lanes of a launch read from and write to device memory, params aside."""

    read: int
    written: int


def predicted_traffic(launch: Launch, problem: Problem) -> Traffic:
    """What a launch of ``forward`` or ``backward`` moves, summed over its threadgroups.

    Raises:
        ValueError: it follows from lengths in a table, which the problem does not have.
    """
    if problem.sequences is not None or problem.cache != _NO_CACHE:
        raise ValueError("what lengths in a table, or a cache, make a launch move is not known from its plan")
    defines = dict(launch.defines)
    predict = {
        "attention_forward": _forward_traffic,
        "attention_backward_delta": _delta_traffic,
        "attention_backward_dq": _dq_traffic,
        "attention_backward_dkv": _dkv_traffic,
        "attention_backward_dmask": _dmask_traffic,
    }[launch.kernel]
    numbers = {name: int(value) for name, value in defines.items() if str(value).isdigit()}
    groups = launch.threads[0] // launch.group_size[0]
    return predict(problem, {**numbers, "BLOCKS": launch.threads[1] if numbers.get("HEADS_FIRST") else groups})


def _visible_keys(problem: Problem, query: int) -> int:
    """The number of keys, from the first, that queries up to this one may see."""
    if problem.causal_offset is None:
        return problem.keys
    return min(max(query + 1 + problem.causal_offset, 0), problem.keys)


def _first_key(problem: Problem, query: int) -> int:
    """The first key that queries from this one on may see."""
    if problem.window_offset is None:
        return 0
    return min(max(query + problem.window_offset, 0), problem.keys)


def _seeing_queries(problem: Problem, key: int) -> int:
    """The number of queries, from the first, that may see keys up to this one."""
    if problem.window_offset is None:
        return problem.queries
    return min(max(key + 1 - problem.window_offset, 0), problem.queries)


def _first_query(problem: Problem, key: int) -> int:
    """The first query that sees a key from this one on."""
    return 0 if problem.causal_offset is None else max(key - problem.causal_offset, 0)


def _row_bytes(problem: Problem) -> int:
    """Of one row of queries or keys."""
    return problem.head_size * problem.dtype.itemsize


def _value_row_bytes(problem: Problem) -> int:
    """Of one row of values or outputs."""
    return problem.value_head_size * problem.dtype.itemsize


def _value_bytes(problem: Problem) -> int:
    """Of one element of lse or delta."""
    return max(problem.dtype.itemsize, 4)


def _mask_bytes(problem: Problem) -> int:
    """Of the mask, read once for every pair of a query and a key it may see, for all heads."""
    if problem.mask is None:
        return 0
    pairs = sum(max(_visible_keys(problem, query) - _first_key(problem, query), 0) for query in range(problem.queries))
    return problem.batch * problem.query_heads * pairs * problem.mask.dtype.itemsize


def _turning_bytes(problem: Problem) -> int:
    """What is read more of a row that is turned: the other element of each one's pair, a cosine and a sine."""
    columns = 2 * problem.rotation.pairs if problem.rotation else 0
    return columns * (problem.dtype.itemsize + 2 * _value_bytes(problem))


class _Rows(NamedTuple):
    """Rows that the threadgroups of one head and one block of columns read, each as often as it is read."""

    #: Of keys, and as many of values, that are staged.
    staged: int
    #: Likewise, that simdgroups read for one product, where nothing is staged.
    used: int
    #: Of queries.
    kept: int


def _walk_over_keys(problem: Problem, defines: dict[str, int], splits: int = 1) -> _Rows:
    own, walked, kept = defines["BQ"], defines["BK"], defines["ROW_TILES"] * _TILE
    staged = used = read = 0
    for block in range(0, problem.queries, own):
        first = _first_key(problem, block) // walked * walked
        end = max(_visible_keys(problem, block + own - 1), first)
        if defines["STAGED"] and end > first:
            staged += min(-(-end // walked) * walked, problem.keys) - first
        for row in range(block, min(block + own, problem.queries), kept):
            begin = max(_first_key(problem, row) // walked * walked, first)
            steps = max(-(-(_visible_keys(problem, row + kept - 1) - begin) // walked), 0)
            if not defines["STAGED"] and steps:
                used += min(begin + steps * walked, problem.keys) - begin
            read += (splits if defines["HOLD"] else steps) * min(kept, problem.queries - row)
    return _Rows(staged, used, read)


def _heads(problem: Problem) -> int:
    return problem.batch * problem.query_heads


#: Lanes that share a row, or a column, of a tile: each reads the row's, or column's, value for itself.
_SHARING = 4


def _forward_traffic(problem: Problem, defines: dict[str, int]) -> Traffic:
    problem = packed(problem)
    blocks = defines["COLUMN_BLOCKS"]
    splits = defines["BLOCKS"] // blocks // max(-(-problem.queries // defines["BQ"]), 1)
    rows = splits * _heads(problem) * problem.queries
    output = _value_row_bytes(problem) if splits == 1 else problem.value_head_size * _value_bytes(problem)
    staged, used, kept = _walk_over_keys(problem, defines, splits)
    read = (
        blocks * (staged + used + kept) * (_row_bytes(problem) + _turning_bytes(problem))
        + (staged + used) * _value_row_bytes(problem)  # each block of columns reads its own
    )
    return Traffic(
        read=_heads(problem) * read + blocks * _mask_bytes(problem), written=rows * (output + _value_bytes(problem))
    )


def _delta_traffic(problem: Problem, defines: dict[str, int]) -> Traffic:
    rows, values = _heads(problem) * problem.queries, 2 * defines["LSE_GRADIENT"]
    return Traffic(
        read=rows * (2 * _value_row_bytes(problem) + values * _value_bytes(problem)),
        written=rows * _value_bytes(problem),
    )


def _dq_traffic(problem: Problem, defines: dict[str, int]) -> Traffic:
    rows = _heads(problem) * problem.queries
    blocks = defines["COLUMN_BLOCKS"]
    values = rows * 2 * _SHARING * _value_bytes(problem)
    staged, used, kept = _walk_over_keys(problem, defines)
    # Where nothing is staged, each block of columns reads its own of the keys once more, for the gradient.
    keys = blocks * (staged + used + kept) + used
    read = keys * (_row_bytes(problem) + _turning_bytes(problem))
    read += blocks * (staged + used + kept) * _value_row_bytes(problem)
    return Traffic(
        read=_heads(problem) * read + blocks * (values + _mask_bytes(problem)),
        written=rows * _row_bytes(problem),
    )


def _dkv_traffic(problem: Problem, defines: dict[str, int]) -> Traffic:
    own, walked, kept = defines["BK"], defines["BQ"], defines["ROW_TILES"] * _TILE
    staged = used = values = kept_again = 0
    for block in range(0, problem.keys, own):
        first = _first_query(problem, block) // walked * walked
        end = _seeing_queries(problem, block + own - 1)
        visited = max(min(-(-end // walked) * walked, problem.queries) - first, 0)
        staged += visited if defines["STAGED"] else 0
        values += visited * 2 if defines["STAGE_VALUES"] else 0
        for key in range(block, min(block + own, problem.keys), kept):
            start = max(_first_query(problem, key) // walked * walked, first)
            end = _seeing_queries(problem, key + kept - 1)
            computed = max(min(-(-end // walked) * walked, problem.queries) - start, 0)
            used += 0 if defines["STAGED"] else computed
            values += 0 if defines["STAGE_VALUES"] else 2 * 2 * _SHARING * computed
            kept_again += 0 if defines["HOLD"] else min(kept, problem.keys - key) * -(-computed // walked)
    blocks, heads, keys = defines["COLUMN_BLOCKS"], _heads(problem), problem.batch * problem.key_heads * problem.keys
    # Each of the matrices that are walked over takes part in two products, of which the second needs one block's
    # columns only.
    whole = blocks * (heads * (staged + used + kept_again) + (keys if defines["HOLD"] else 0))
    return Traffic(
        read=(whole + heads * used) * (_row_bytes(problem) + _turning_bytes(problem) + _value_row_bytes(problem))
        + blocks * (heads * values * _value_bytes(problem) + _mask_bytes(problem)),
        written=keys * (_row_bytes(problem) + _value_row_bytes(problem)),
    )


def _dmask_traffic(problem: Problem, defines: dict[str, int]) -> Traffic:
    own, staged = defines["BQ"], defines["BK"]
    walked = held = values = 0
    for block in range(0, problem.queries, own):
        rows = min(own, problem.queries - block)
        begin = _first_key(problem, block) // staged * staged
        visited = range(begin, _visible_keys(problem, block + own - 1), staged)
        walked += sum(min(staged, problem.keys - key) for key in visited)
        values += 2 * _SHARING * rows * len(visited)
        owners = 1 if defines["SUM_KEYS"] else -(-problem.keys // staged)
        held += rows * (owners if defines["HOLD"] else len(visited))
    sizes = problem.mask.sizes if problem.mask else ()
    return Traffic(
        read=_heads(problem)
        * (
            (walked + held) * (_row_bytes(problem) + _value_row_bytes(problem))
            + (walked + held) * _turning_bytes(problem)
            + values * _value_bytes(problem)
        )
        + _mask_bytes(problem),
        written=math.prod(sizes) * (problem.mask.dtype.itemsize if problem.mask else 0),
    )
