"""Decides how an attention problem is launched. Pure: the same problem and device give the same plan."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from ...errors import UnsupportedError
from ...launch import Capabilities, Launch, ParamStruct
from ...source import Define

__all__ = ["MAX_HEAD_SIZE", "Layout", "MaskLayout", "Problem", "backward", "forward"]

MAX_HEAD_SIZE = 256

_FOLDER = "ops/attention"
_TILE = 16  # rows and columns of the matrix layer's unit
_LANES = 32
_SIMDGROUPS = 4
_CHUNK_BYTES = 16  # what a lane moves at once
#: 32-bit registers a lane may spend on rows and accumulators before rows are read again for each block instead.
_REGISTERS = 128

_ELEMENTS = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat", torch.float64: "double"}
_MASK_ELEMENTS = {torch.bool: "bool", **_ELEMENTS}


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
        return "double" if self.dtype == torch.float64 else "float"


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
    strides = dict(zip(("q", "k", "v", "o", "do", "dq", "dk", "dv"), (x.strides for x in problem.layouts), strict=False))
    return _params().pack(
        {
            **{f"{name}_stride": strides.get(name, (0, 0, 0)) for name in ("q", "k", "v", "o", "do", "dq", "dk", "dv")},
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
        ("ELEMENT", _ELEMENTS[problem.dtype]),
        ("ACCUMULATOR", problem.accumulator),
        ("MASK", mask),
        ("MASK_ELEMENT", _MASK_ELEMENTS[problem.mask.dtype] if problem.mask else "bool"),
        ("CAUSAL", int(problem.causal_offset is not None)),
        ("ARGS_BYTES", _params().size),
    )


def _refuse(problem: Problem, capabilities: Capabilities) -> None:
    if not 1 <= problem.head_size <= MAX_HEAD_SIZE:
        raise UnsupportedError(f"head size {problem.head_size} is not in 1..{MAX_HEAD_SIZE}")
    if problem.dtype not in _ELEMENTS or (problem.dtype == torch.float64 and not capabilities.float64):
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
