"""Decides how an attention problem is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
import itertools
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
_SIMDGROUPS = 4
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


@dataclass(frozen=True)
class _Tiles:
    """Tile sizes of one kernel: ``own`` rows a threadgroup keeps, ``staged`` rows a block brings."""

    own: int
    staged: int
    pad: int
    threadgroup_bytes: int
    stage_values: bool = True

    @property
    def threads(self) -> int:
        return _LANES * _SIMDGROUPS


def _padded_head(problem: Problem) -> int:
    return -(-problem.head_size // _TILE) * _TILE


def _tiles(problem: Problem, capabilities: Capabilities, *, values: int) -> _Tiles:
    """The largest tiles that fit: two staged matrices and ``values`` numbers for each staged row.

    float64 exists for checks only and takes the tiles of float32, in twice the memory.
    """
    size = min(problem.dtype.itemsize, 4)
    scale = problem.dtype.itemsize // size
    for staged, pad, stage_values in ((32, 1, True), (16, 1, True), (16, 0, True), (16, 0, False)):
        row = _padded_head(problem) * size + pad * _CHUNK_BYTES
        used = staged * (2 * row + (values * 4 if stage_values else 0))
        if used <= capabilities.threadgroup_bytes:
            return _Tiles(_TILE * _SIMDGROUPS, staged, pad, used * scale, stage_values)
    raise UnsupportedError(
        f"head size {problem.head_size} in {problem.dtype} needs more than "
        f"{capabilities.threadgroup_bytes} bytes of threadgroup memory"
    )


def _hold(problem: Problem, *, rows: int, accumulators: int) -> int:
    """Whether a simdgroup's ``rows`` operands and its accumulators, 16 rows each, fit in registers."""
    size = min(problem.dtype.itemsize, 4)
    words_a_lane = _TILE * _padded_head(problem) * (rows * size + accumulators * 4) // (4 * _LANES)
    return int(words_a_lane <= _REGISTERS)


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


def _over_queries(name: str, problem: Problem, capabilities: Capabilities, *, rows: int) -> Launch:
    """A kernel whose threadgroups keep queries and walk over staged keys and values."""
    tiles = _tiles(problem, capabilities, values=0)
    k, v = problem.layouts[1:3]
    defines: tuple[Define, ...] = (
        *_common_defines(problem),
        ("BQ", tiles.own),
        ("BK", tiles.staged),
        ("BD", _padded_head(problem)),
        ("THREADS", tiles.threads),
        ("PAD", tiles.pad),
        ("ALIGNED", int(k.aligned and v.aligned)),
        ("HOLD", _hold(problem, rows=rows, accumulators=1)),
    )
    return Launch(
        file=f"{_FOLDER}/{name}.metal",
        kernel=f"attention_{name}",
        defines=defines,
        words=_words(problem),
        threads=(-(-problem.queries // tiles.own) * tiles.threads, problem.query_heads, problem.batch),
        group_size=(tiles.threads, 1, 1),
        threadgroup_bytes=tiles.threadgroup_bytes,
    )


@functools.lru_cache(maxsize=1024)
def forward(problem: Problem, capabilities: Capabilities) -> Launch:
    """The launch of ``attention_forward``.

    Raises:
        UnsupportedError: with the reason.
    """
    _refuse(problem, capabilities)
    return _over_queries("forward", problem, capabilities, rows=1)


@functools.lru_cache(maxsize=1024)
def backward(problem: Problem, capabilities: Capabilities, lse_gradient: bool) -> tuple[Launch, Launch, Launch]:
    """The launches of ``attention_backward_delta``, ``_dq`` and ``_dkv``, in this order.

    Raises:
        UnsupportedError: with the reason.
    """
    _refuse(problem, capabilities)
    tiles = _tiles(problem, capabilities, values=2)
    q, d_o = problem.layouts[0], problem.layouts[4]
    threads = tiles.threads
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
            ("THREADS", threads),
            ("PAD", tiles.pad),
            ("ALIGNED", int(q.aligned and d_o.aligned)),
            ("HOLD", _hold(problem, rows=2, accumulators=2)),
            ("STAGE_VALUES", int(tiles.stage_values)),
        ),
        words=_words(problem),
        threads=(-(-problem.keys // tiles.own) * threads, problem.key_heads, problem.batch),
        group_size=(threads, 1, 1),
        threadgroup_bytes=tiles.threadgroup_bytes,
    )
    return delta, _over_queries("backward_dq", problem, capabilities, rows=2), dkv


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
