"""Every kernel of a product and its gradient on small problems, for the doctor: each stands for itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ...launch import Capabilities, Launch
from ...self_check import Expected, SelfCheck
from ..dtypes import accumulator_dtype
from . import plan, reference
from .activation import Activation
from .cases import Case, Inputs
from .function import describe

__all__ = ["self_checks"]

_PLAIN = Case(128, 96, 64)
#: All at once: odd sizes, transposed operands, bias and activation; its depth is split in the check.
_ODD = Case(70, 45, 150, a_layout="transposed", b_layout="transposed", bias=True, activation=Activation.GELU)
_SPLITS = 2
#: Blocks that are cut off at each end, operands that lie in each way.
_WIDE = (
    Case(200, 328, 136),
    Case(200, 328, 136, a_layout="transposed", b_layout="transposed", bias=True, activation=Activation.SILU),
)


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks in each dtype that Metal has, made one problem at a time."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        plain, odd = _PLAIN.inputs(dtype), _ODD.inputs(dtype)
        yield _Checks(_PLAIN, plain, capabilities).whole()
        checks = _Checks(_ODD, odd, capabilities)
        yield checks.whole()
        yield from checks.split()
        yield from checks.gradients()
        for case in _WIDE:
            yield from _Checks(case, case.inputs(dtype), capabilities).wide()


class _Checks:
    def __init__(self, case: Case, inputs: Inputs, capabilities: Capabilities) -> None:
        self._capabilities = capabilities
        self._inputs = inputs
        self._dtype = inputs.a.dtype
        self._problem = describe(inputs.a, inputs.b, inputs.bias, inputs.activation, inputs.bias is not None)
        self._words = f"{case.rows} x {case.columns} x {case.depth}{', transposed, bias' if case.bias else ''}"
        # Contiguous tensors with the bytes that the kernel sees.
        self._operands = tuple(x if x.is_contiguous() else x.mT for x in (inputs.a, inputs.b))

    def _check(self, launch: Launch, read: tuple[Tensor, ...], written: tuple[Expected, ...]) -> SelfCheck:
        return SelfCheck(self._words, self._dtype, launch, read, written)

    def _sum(self) -> Expected:
        """A B + bias."""
        x = self._inputs
        exact = reference.gemm(x.a.double(), x.b.double(), None if x.bias is None else x.bias.double(), 0)[1]
        return Expected("z", exact, reference.gemm(x.a, x.b, x.bias, 0)[1])

    def _result(self) -> Expected:
        z = self._sum()
        return Expected(
            "c", *(reference.apply_activation(x, self._inputs.activation) for x in (z.reference, z.pytorch))
        )

    def wide(self) -> Iterator[SelfCheck]:
        for tiling in plan.wide_tilings(self._problem, self._capabilities):
            yield self.whole(tiling)

    def whole(self, tiling: plan.Tiling | None = None) -> SelfCheck:
        launch = plan.product(self._problem, self._capabilities, tiling).product
        if self._inputs.bias is None:  # nothing is read of a bias, nothing written of z
            unused = self._inputs.a.flatten()
            return self._check(launch, (*self._operands, unused, unused), (self._result(),))
        return self._check(launch, (*self._operands, self._inputs.bias), (self._sum(), self._result()))

    def split(self) -> Iterator[SelfCheck]:
        x, unused = self._inputs, self._inputs.a.flatten()
        tiling = replace(plan.default_tiling(self._problem, self._capabilities), splits=_SPLITS)
        chosen = plan.product(self._problem, self._capabilities, tiling)
        assert chosen.reduction is not None
        assert x.bias is not None
        depth = plan.split_depth(self._problem, tiling)
        cuts = [slice(k, k + depth) for k in range(0, x.a.shape[-1], depth)]
        exact, baseline = (
            torch.stack([a[:, cut] @ b[cut] for cut in cuts])
            for a, b in ((x.a.double(), x.b.double()), (x.a.to(self._sums), x.b.to(self._sums)))
        )
        yield self._check(chosen.product, (*self._operands, unused, unused), (Expected("parts", exact, baseline),))
        parts = exact.to(self._sums)
        yield self._check(chosen.reduction, (parts, x.bias), (self._sum(), self._result()))

    @property
    def _sums(self) -> torch.dtype:
        return accumulator_dtype(self._dtype)

    def gradients(self) -> Iterator[SelfCheck]:
        x, z = self._inputs, self._sum().reference.to(self._dtype)
        problem = plan.BackwardProblem(self._dtype, x.grad_c.shape[0], x.grad_c.shape[1], True, x.activation)
        chosen = plan.backward_epilogue(problem, self._capabilities)
        assert chosen.reduction is not None
        exact, baseline = (
            x.grad_c.to(dtype) * reference.activation_derivative(z.to(dtype), x.activation)
            for dtype in (torch.float64, self._dtype)
        )
        sums = Expected("sums", exact.sum(0, keepdim=True), baseline.to(self._sums).sum(0, keepdim=True))
        yield self._check(chosen.product, (x.grad_c, z), (Expected("dz", exact, baseline), sums))
