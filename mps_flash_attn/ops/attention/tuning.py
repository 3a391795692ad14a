"""What there is to tune about attention: its three kernels, in the head sizes, lengths and masks of common models."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ...launch import Capabilities, bind
from ...self_check import Expected
from ...tune import Subject
from . import plan
from .cases import Case
from .operands import Operands, operands, problem, words
from .problem import Causal

__all__ = ["subject", "subjects"]

_KERNELS = (plan.FORWARD, plan.BACKWARD_DQ, plan.BACKWARD_DKV)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_HEAD_SIZES = (64, 128, 80, 96, 256)
#: Those of models with rotary position embedding, which is tuned with a causal mask.
_ROTARY_HEAD_SIZES = (64, 128)
#: Lengths and heads of long and short sequences by type of device: on a GPU so many heads that a launch takes longer
#: than its call in Python, on the simulator, where the count of work is exact however little there is, one.
_SIZES = {
    "cpu": ((256, 1), (96, 1)),
    "mps": ((1024, 16), (128, 256)),
    "cuda": ((2048, 64), (128, 2048)),
}
#: Heads that differ, so that one head taken for its neighbour is noticed; the others repeat them, which spares most of
#: the reference.
_DISTINCT_HEADS = 2
#: Of tables of cosines and sines, ``[P, R / 2]``; all else has heads.
_TABLE_DIMS = 2


def subjects(capabilities: Capabilities, device: str) -> Iterator[Subject]:
    """The kernels on each class of problems, in sizes that suit the device."""
    sizes = _SIZES[device]
    for dtype, head_size, (length, heads) in itertools.product(_DTYPES, _HEAD_SIZES, sizes):
        causal = Case(length, length, head_size, 1, heads, heads, Causal.TOP_LEFT)
        cases = [causal, dataclasses.replace(causal, causal=Causal.NONE)]
        if head_size in _ROTARY_HEAD_SIZES:
            turned = plan.Rotation(head_size // 2, interleaved=False, query_position=0)
            cases.append(dataclasses.replace(causal, rotation=turned))
        for case, kernel in itertools.product(cases, _KERNELS):
            yield subject(kernel, case, dtype, capabilities)


def subject(kernel: plan.Kernel, case: Case, dtype: torch.dtype, capabilities: Capabilities) -> Subject:
    """A kernel on one problem, which stands for its class."""
    described, name = problem(case.inputs(dtype, "meta")), f"attention_{kernel.name}"
    return Subject(
        kernel=name,
        shape_class=plan.shape_class(described),
        dtype=dtype,
        problem=f"{words(case)}, {case.query_heads} heads",
        default=plan.default_tiling(described, capabilities, kernel),
        tilings=tuple(plan.tilings(described, capabilities, kernel)),
        prepare=lambda tiling, runtime: bind(plan.walk(described, capabilities, kernel, tiling), runtime),
        operands=lambda: _operands(case, dtype)[name],
    )


@functools.lru_cache(maxsize=1)
def _operands(case: Case, dtype: torch.dtype) -> dict[str, Operands]:
    """Made once for the kernels of a case, which follow one another."""
    distinct = min(case.query_heads, _DISTINCT_HEADS)
    made = operands(dataclasses.replace(case, query_heads=distinct, key_heads=distinct).inputs(dtype))
    repeats = case.query_heads // distinct
    return made if repeats == 1 else {name: _repeated(*of, repeats) for name, of in made.items()}


def _repeated(read: tuple[Tensor, ...], written: tuple[Expected, ...], repeats: int) -> Operands:
    """Operands with as many times the heads, the first of them after the last; tables are those of all heads."""

    def repeat(tensor: Tensor) -> Tensor:
        return tensor if tensor.dim() == _TABLE_DIMS else torch.cat([tensor] * repeats, dim=1)

    return tuple(map(repeat, read)), tuple(Expected(x.name, repeat(x.reference), repeat(x.pytorch)) for x in written)
