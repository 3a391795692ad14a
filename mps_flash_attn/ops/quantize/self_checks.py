"""Numbers that a format holds, quantized and back."""

from __future__ import annotations

from collections.abc import Iterator

from ...launch import Capabilities
from ...self_check import Expected, SelfCheck
from . import plan, reference
from .cases import CHECKED
from .function import describe_dequantize, describe_quantize

__all__ = ["self_checks"]


def self_checks(capabilities: Capabilities) -> Iterator[SelfCheck]:
    """Checks of both kernels in each format and in each dtype that Metal has, made one problem at a time."""
    for dtype, case in CHECKED:
        stored, scale = case.stored()
        exact = reference.dequantize(stored, scale.double(), case.of, case.group_size, case.columns)
        values = Expected("output", exact, exact.to(dtype))
        bytes_ = Expected("stored", stored.double(), stored), Expected("scale", scale.double(), scale)
        words = f"{' x '.join(map(str, case.shape))} rows of {case.columns}, {case.format}"
        described = describe_quantize(values.pytorch, case.format, case.group_size)
        yield SelfCheck(words, dtype, plan.quantize(described, capabilities), (values.pytorch,), bytes_)
        described = describe_dequantize(stored, scale, values.pytorch, case.format, case.group_size)
        yield SelfCheck(words, dtype, plan.dequantize(described, capabilities), (stored, scale), (values,))
