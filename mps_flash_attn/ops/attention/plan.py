"""Decides how an attention problem is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import dataclasses
import enum
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...errors import UnsupportedError
from ...launch import Capabilities, Launch, ParamStruct
from ...source import Define
from ..dtypes import ELEMENTS, accumulator

__all__ = ["MAX_HEAD_SIZE", "Layout", "MaskLayout", "Problem", "Traffic", "backward", "forward", "predicted_traffic"]

MAX_HEAD_SIZE = 256

_FOLDER = "ops/attention"
_TILE = 16  # rows and columns of the matrix layer's unit
_LANES = 32
_CHUNK_BYTES = 16  # what a lane moves at once
#: 32-bit registers a lane may spend on rows and accumulators before rows are read again for each block instead.
_REGISTERS = 128

_MASK_ELEMENTS = {torch.bool: "bool", **ELEMENTS}


@dataclass(frozen=True)
class Layout:
    """Where the rows of a ``[B, H, L, D]`` tensor lie: strides in elements of batch, head and row."""

    strides: tuple[int, int, int]
    #: Every row starts at a multiple of 16 bytes and is a whole number of 16 bytes long.
    aligned: bool = False


@dataclass(frozen=True)
class MaskLayout:
    """An ``attn_mask`` over ``[B, H, Lq, Lk]``; strides in elements, 0 where broadcast."""

    dtype: torch.dtype
    strides: tuple[int, int, int, int]


@dataclass(frozen=True)
class Problem:
    """Everything about a call that a plan may depend on, sizes as in the kernels.

    Attributes:
        causal_offset: the last key that query ``i`` sees is ``i + causal_offset``; ``None`` when all are seen.
        layouts: of ``q k v o`` and, in the backward pass, ``do dq dk dv``.
    """

    dtype: torch.dtype
    batch: int
    query_heads: int
    key_heads: int
    queries: int
    keys: int
    head_size: int
    scale: float
    causal_offset: int | None
    mask: MaskLayout | None
    layouts: tuple[Layout, ...]

    @property
    def accumulator(self) -> str:
        return accumulator(self.dtype)


class _Hold(enum.IntEnum):
    """Where a simdgroup keeps its own rows, as in ``operand.h``."""

    NOWHERE = 0
    REGISTERS = 1
    STAGED = 2


@dataclass(frozen=True)
class _Tiles:
    """How a kernel cuts its work.

    Attributes:
        staged: rows that a block brings to threadgroup memory, of two matrices.
        simdgroups: of a threadgroup.
        row_tiles: tiles of 16 rows that each of them keeps.
        hold: where they keep them.
        pad: 1 to keep the rows of staged tiles apart by 16 bytes.
        buffers: 2 to copy a block while the one before it is used.
        stage_values: whether the numbers of each staged row are staged with it.
    """

    staged: int
    simdgroups: int = 4
    row_tiles: int = 1
    hold: _Hold = _Hold.REGISTERS
    pad: int = 1
    buffers: int = 1
    stage_values: bool = True

    @property
    def own(self) -> int:
        """Rows that a threadgroup keeps."""
        return _TILE * self.simdgroups * self.row_tiles

    @property
    def threads(self) -> int:
        return _LANES * self.simdgroups

    def threadgroup_bytes(self, problem: Problem, kernel: _Kernel) -> int:
        """Of all tiles and values."""
        row = _padded_head(problem) * problem.dtype.itemsize + self.pad * _CHUNK_BYTES
        held = self.own * kernel.matrices * row if self.hold == _Hold.STAGED else 0
        values = kernel.values * max(problem.dtype.itemsize, 4) if self.stage_values else 0
        return held + self.buffers * self.staged * (2 * row + values)

    def defines(self) -> tuple[Define, ...]:
        """Those of ``copy.h``, ``operand.h`` and ``staged_pair.h``."""
        return (
            ("THREADS", self.threads),
            ("ROW_TILES", self.row_tiles),
            ("HOLD", int(self.hold)),
            ("PAD", self.pad),
            ("BUFFERS", self.buffers),
        )


@dataclass(frozen=True)
class _Kernel:
    """What the tiles of a kernel depend on.

    Attributes:
        name: of its file.
        matrices: that a simdgroup keeps rows of.
        accumulators: matrices that it sums up, likewise.
        values: numbers that are staged with each row of a block.
        mma: tiles on NVIDIA's matrix units by the bytes of an element, each with the largest head size it is for.
    """

    name: str
    matrices: int
    accumulators: int
    values: int
    mma: Mapping[int, tuple[tuple[int, _Tiles], ...]]


_FORWARD = _Kernel(
    "forward",
    matrices=1,
    accumulators=1,
    values=0,
    mma={
        2: (
            (64, _Tiles(96, row_tiles=2, hold=_Hold.STAGED)),
            (128, _Tiles(64, row_tiles=2, hold=_Hold.STAGED)),
            (256, _Tiles(32, hold=_Hold.STAGED)),
        ),
        4: (
            (64, _Tiles(32, row_tiles=2, hold=_Hold.STAGED)),
            (128, _Tiles(16, row_tiles=2, hold=_Hold.STAGED)),
        ),
    },
)
_DQ = _Kernel(
    "backward_dq",
    matrices=2,
    accumulators=1,
    values=0,
    mma={
        2: (
            (64, _Tiles(64, row_tiles=2, hold=_Hold.STAGED, buffers=2)),
            (128, _Tiles(32, row_tiles=2, hold=_Hold.STAGED, buffers=2)),
            (256, _Tiles(32, hold=_Hold.STAGED)),
        ),
        4: (
            (64, _Tiles(32, row_tiles=2, hold=_Hold.STAGED)),
            (128, _Tiles(32, hold=_Hold.STAGED)),
        ),
    },
)
_DKV = _Kernel(
    "backward_dkv",
    matrices=2,
    accumulators=2,
    values=2,
    mma={
        2: (
            (64, _Tiles(48, row_tiles=2, hold=_Hold.STAGED, buffers=2)),
            (128, _Tiles(64, simdgroups=8, hold=_Hold.STAGED, buffers=2)),
        ),
        4: (
            (64, _Tiles(32, hold=_Hold.STAGED)),
            (128, _Tiles(16, hold=_Hold.STAGED)),
        ),
    },
)

#: The tiles of all else, the largest first; those that fit best hold their rows in registers.
_SIMDGROUP_TILES = (_Tiles(32), _Tiles(16), _Tiles(16, pad=0), _Tiles(16, pad=0, stage_values=False))


def _padded_head(problem: Problem) -> int:
    return -(-problem.head_size // _TILE) * _TILE


def _tiles(problem: Problem, capabilities: Capabilities, kernel: _Kernel) -> _Tiles:
    """The first of the device's tiles that fit.

    float64 exists for checks only and takes the tiles of float32, in twice the memory.
    """
    # Whether a simdgroup's rows and its accumulators, 16 rows each, fit in registers.
    size = min(problem.dtype.itemsize, 4)
    words_a_lane = _TILE * _padded_head(problem) * (kernel.matrices * size + kernel.accumulators * 4) // (4 * _LANES)
    hold = _Hold.REGISTERS if words_a_lane <= _REGISTERS else _Hold.NOWHERE
    choices = [dataclasses.replace(tiles, hold=hold) for tiles in _SIMDGROUP_TILES]
    if capabilities.matrix_unit == "mma":
        fast = kernel.mma.get(problem.dtype.itemsize, ())
        choices = [tiles for largest, tiles in fast if problem.head_size <= largest][:1] + choices
    available = capabilities.threadgroup_bytes * (problem.dtype.itemsize // size)
    for tiles in choices:
        if tiles.threadgroup_bytes(problem, kernel) <= available:
            return tiles
    raise UnsupportedError(
        f"head size {problem.head_size} in {problem.dtype} needs more than "
        f"{capabilities.threadgroup_bytes} bytes of threadgroup memory"
    )


def _params() -> ParamStruct:
    return ParamStruct.read(f"{_FOLDER}/args.h", "AttentionArgs")


def _words(problem: Problem) -> tuple[int, ...]:
    unused = Layout((0, 0, 0))
    tensors = itertools.zip_longest(("q", "k", "v", "o", "do", "dq", "dk", "dv"), problem.layouts, fillvalue=unused)
    return _params().pack(
        {
            **{f"{name}_stride": layout.strides for name, layout in tensors},
            "mask_stride": problem.mask.strides if problem.mask else (0, 0, 0, 0),
            "query_heads": problem.query_heads,
            "group": problem.query_heads // problem.key_heads,
            "queries": problem.queries,
            "keys": problem.keys,
            "head_size": problem.head_size,
            "causal_offset": problem.causal_offset or 0,
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
        ("ARGS_BYTES", _params().size),
    )


def _refuse(problem: Problem, capabilities: Capabilities) -> None:
    if not 1 <= problem.head_size <= MAX_HEAD_SIZE:
        raise UnsupportedError(f"head size {problem.head_size} is not in 1..{MAX_HEAD_SIZE}")
    if problem.dtype not in ELEMENTS or (problem.dtype == torch.float64 and not capabilities.float64):
        raise UnsupportedError(f"dtype {problem.dtype} has no kernel on this device")
    if max(problem.queries, problem.keys) >= 2**31 - 2**10:
        raise UnsupportedError(f"sequence lengths {problem.queries} and {problem.keys} do not fit in 32 bits")


def _over_queries(kernel: _Kernel, problem: Problem, capabilities: Capabilities) -> Launch:
    """A kernel whose threadgroups keep queries and walk over staged keys and values."""
    tiles = _tiles(problem, capabilities, kernel)
    q, k, v = problem.layouts[:3]
    aligned = (k, v) if tiles.hold != _Hold.STAGED else (q, k, v, *problem.layouts[4 : 3 + kernel.matrices])
    return Launch(
        file=f"{_FOLDER}/{kernel.name}.metal",
        kernel=f"attention_{kernel.name}",
        defines=(
            *_common_defines(problem),
            ("BQ", tiles.own),
            ("BK", tiles.staged),
            ("BD", _padded_head(problem)),
            *tiles.defines(),
            ("ALIGNED", int(all(layout.aligned for layout in aligned))),
        ),
        words=_words(problem),
        threads=(-(-problem.queries // tiles.own) * tiles.threads, problem.query_heads, problem.batch),
        group_size=(tiles.threads, 1, 1),
        threadgroup_bytes=tiles.threadgroup_bytes(problem, kernel),
    )


@functools.lru_cache(maxsize=1024)
def forward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``attention_forward``.

    Raises:
        UnsupportedError: with the reason.
    """
    _refuse(problem, capabilities)
    return _over_queries(_FORWARD, problem, capabilities)


@functools.lru_cache(maxsize=1024)
def backward(problem: Problem, capabilities: Capabilities, lse_gradient: bool) -> tuple[Launch, Launch, Launch]:
    """The launches of ``attention_backward_delta``, ``_dq`` and ``_dkv``, in this order.

    Raises:
        UnsupportedError: with the reason.
    """
    _refuse(problem, capabilities)
    tiles = _tiles(problem, capabilities, _DKV)
    (q, k, v), d_o = problem.layouts[:3], problem.layouts[4]
    threads = tiles.threads
    aligned = (q, d_o) if tiles.hold != _Hold.STAGED else (q, k, v, d_o)
    delta = Launch(
        file=f"{_FOLDER}/backward_delta.metal",
        kernel="attention_backward_delta",
        defines=(*_common_defines(problem), ("LSE_GRADIENT", int(lse_gradient))),
        words=_words(problem),
        threads=(_LANES * problem.queries, problem.query_heads, problem.batch),
        group_size=(threads, 1, 1),
        threadgroup_bytes=0,
    )
    dkv = Launch(
        file=f"{_FOLDER}/backward_dkv.metal",
        kernel="attention_backward_dkv",
        defines=(
            *_common_defines(problem),
            ("BQ", tiles.staged),
            ("BK", tiles.own),
            ("BD", _padded_head(problem)),
            *tiles.defines(),
            ("ALIGNED", int(all(layout.aligned for layout in aligned))),
            ("STAGE_VALUES", int(tiles.stage_values)),
        ),
        words=_words(problem),
        threads=(-(-problem.keys // tiles.own) * threads, problem.key_heads, problem.batch),
        group_size=(threads, 1, 1),
        threadgroup_bytes=tiles.threadgroup_bytes(problem, _DKV),
    )
    return delta, _over_queries(_DQ, problem, capabilities), dkv


@dataclass(frozen=True)
class Traffic:
    """Bytes that all lanes of a launch read from and write to device memory, params aside."""

    read: int
    written: int


def predicted_traffic(launch: Launch, problem: Problem) -> Traffic:
    """What a launch of ``forward`` or ``backward`` moves, summed over its threadgroups."""
    defines = dict(launch.defines)
    predict = {
        "attention_forward": _forward_traffic,
        "attention_backward_delta": _delta_traffic,
        "attention_backward_dq": _dq_traffic,
        "attention_backward_dkv": _dkv_traffic,
    }[launch.kernel]
    return predict(problem, {name: int(value) for name, value in defines.items() if str(value).isdigit()})


def _visible_keys(problem: Problem, query: int) -> int:
    """The number of keys, from the first, that queries up to this one may see."""
    if problem.causal_offset is None:
        return problem.keys
    return min(max(query + 1 + problem.causal_offset, 0), problem.keys)


def _first_query(problem: Problem, key: int) -> int:
    """The first query that sees a key from this one on."""
    return 0 if problem.causal_offset is None else max(key - problem.causal_offset, 0)


def _row_bytes(problem: Problem) -> int:
    return problem.head_size * problem.dtype.itemsize


def _value_bytes(problem: Problem) -> int:
    """Of one element of lse or delta."""
    return max(problem.dtype.itemsize, 4)


def _mask_bytes(problem: Problem) -> int:
    """Of the mask, read once for every pair of a query and a key it may see, for all heads."""
    if problem.mask is None:
        return 0
    pairs = sum(_visible_keys(problem, query) for query in range(problem.queries))
    return problem.batch * problem.query_heads * pairs * problem.mask.dtype.itemsize


def _walk_over_keys(problem: Problem, defines: dict[str, int], *, rows: int) -> int:
    """What one head's threadgroups read of keys and values, and of the ``rows`` matrices of queries they keep."""
    own, staged = defines["BQ"], defines["BK"]
    read = 0
    for block in range(0, problem.queries, own):
        steps = -(-_visible_keys(problem, block + own - 1) // staged)
        read += 2 * min(steps * staged, problem.keys)
        for tile in range(block, min(block + own, problem.queries), _TILE):
            times = 1 if defines["HOLD"] else -(-_visible_keys(problem, tile + _TILE - 1) // staged)
            read += rows * times * min(_TILE, problem.queries - tile)
    return read * _row_bytes(problem)


def _heads(problem: Problem) -> int:
    return problem.batch * problem.query_heads


#: Lanes that share a row, or a column, of a tile: each reads the row's, or column's, value for itself.
_SHARING = 4


def _forward_traffic(problem: Problem, defines: dict[str, int]) -> Traffic:
    return Traffic(
        read=_heads(problem) * _walk_over_keys(problem, defines, rows=1) + _mask_bytes(problem),
        written=_heads(problem) * problem.queries * (_row_bytes(problem) + _value_bytes(problem)),
    )


def _delta_traffic(problem: Problem, defines: dict[str, int]) -> Traffic:
    rows, gradient = _heads(problem) * problem.queries, defines["LSE_GRADIENT"]
    return Traffic(
        read=rows * (2 * _row_bytes(problem) + gradient * _value_bytes(problem)), written=rows * _value_bytes(problem)
    )


def _dq_traffic(problem: Problem, defines: dict[str, int]) -> Traffic:
    rows = _heads(problem) * problem.queries
    values = rows * 2 * _SHARING * _value_bytes(problem)
    return Traffic(
        read=_heads(problem) * _walk_over_keys(problem, defines, rows=2) + values + _mask_bytes(problem),
        written=rows * _row_bytes(problem),
    )


def _dkv_traffic(problem: Problem, defines: dict[str, int]) -> Traffic:
    own, staged = defines["BK"], defines["BQ"]
    rows = values = 0
    for block in range(0, problem.keys, own):
        first = _first_query(problem, block) // staged * staged
        visited = max(problem.queries - first, 0)
        rows += 2 * visited
        values += visited * 2 if defines["STAGE_VALUES"] else 0
        for tile in range(block, min(block + own, problem.keys), _TILE):
            start = max(_first_query(problem, tile) // staged * staged, first)
            computed = max(problem.queries - start, 0)
            values += 0 if defines["STAGE_VALUES"] else 2 * 2 * _SHARING * computed
            rows += 0 if defines["HOLD"] else 2 * min(_TILE, problem.keys - tile) * -(-computed // staged)
    held = 2 * problem.keys * problem.batch * problem.key_heads if defines["HOLD"] else 0
    heads = _heads(problem)
    return Traffic(
        read=(held + heads * rows) * _row_bytes(problem)
        + heads * values * _value_bytes(problem)
        + _mask_bytes(problem),
        written=2 * problem.batch * problem.key_heads * problem.keys * _row_bytes(problem),
    )
