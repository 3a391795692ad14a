"""What there is to tune about attention: its three kernels, in the head sizes, lengths and masks of common models."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch

from ...launch import Capabilities, bind
from ...tune import Subject
from . import plan
from .cases import Case
from .function import Causal
from .operands import Operands, operands, problem, words

__all__ = ["subjects"]

_KERNELS = (plan.FORWARD, plan.BACKWARD_DQ, plan.BACKWARD_DKV)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_HEAD_SIZES = (64, 128, 80, 96, 256)
#: Lengths of a short and a long sequence and a number of heads: on a GPU enough to fill it, on the simulator, where the
#: count of work is exact however little there is, just more than a block.
_GPU_SIZES, _SIMULATOR_SIZES = (128, 1024, 16), (96, 256, 1)


def subjects(capabilities: Capabilities, device: str) -> Iterator[Subject]:
    """The kernels on each class of problems; problems for the simulator, ``cpu``, are smaller."""
    short, long, heads = _SIMULATOR_SIZES if device == "cpu" else _GPU_SIZES
    for dtype, head_size, length in itertools.product(_DTYPES, _HEAD_SIZES, (long, short)):
        for causal in (Causal.TOP_LEFT, Causal.NONE):
            case = Case(length, length, head_size, batch=1, query_heads=heads, key_heads=heads, causal=causal)
            for kernel in _KERNELS:
                yield _subject(kernel, case, dtype, capabilities)


def _subject(kernel: plan.Kernel, case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Subject:
    described, name = problem(case.inputs(dtype, "meta")), f"attention_{kernel.name}"
    return Subject(
        kernel=name,
        shape_class=plan.shape_class(described),
        dtype=dtype,
        problem=words(case),
        default=plan.default_tiling(described, capabilities, kernel),
        tilings=tuple(plan.tilings(described, capabilities, kernel)),
        prepare=lambda tiling, runtime: bind(plan.walk(described, capabilities, kernel, tiling), runtime),
        operands=lambda: _operands(case, dtype)[name],
    )


@functools.lru_cache(maxsize=1)
def _operands(case: Case, dtype: torch.dtype) -> dict[str, Operands]:
    """Made once for the kernels of a case, which follow one another."""
    return operands(case.inputs(dtype))
