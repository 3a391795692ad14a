"""Formats that keys and values may be stored in; ``msl/stored.h`` says what their bits mean."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

__all__ = ["FORMATS", "GROUP_SIZES", "Format", "Stored"]

#: Columns that may share a scale, where a number has 4 bits.
GROUP_SIZES = (16, 32, 64, 128)


class Stored(enum.IntEnum):
    """How numbers are stored; as in ``msl/stored.h``. ``ELEMENTS`` are not quantized."""

    ELEMENTS = 0
    INT8 = 1
    FP8_E4M3 = 2
    FP8_E5M2 = 3
    INT4 = 4
    NF4 = 5


@dataclass(frozen=True)
class Format:
    """One way to store a row of D numbers and its scales.

    Attributes:
        stored: its number in kernels.
        bits: of a stored number.
        dtype: of the tensor that holds them, wherever PyTorch has it.
        largest: the number that the largest magnitude of a group becomes: ``scale = absmax / largest``.
    """

    stored: Stored
    bits: int
    dtype: torch.dtype
    largest: float

    @property
    def in_groups(self) -> bool:
        """Whether columns share scales in groups; otherwise a row has one."""
        return self.bits < 8

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """Of a tensor there: PyTorch has no float8 on Apple GPUs, where the same bits are held as bytes."""
        return torch.uint8 if device.type == "mps" and self.dtype.is_floating_point else self.dtype

    def row_bytes(self, columns: int) -> int:
        """Bytes of a stored row."""
        return -(-columns * self.bits // 8)

    def groups(self, columns: int, group_size: int) -> int:
        """Scales of a row."""
        return -(-columns // group_size) if self.in_groups else 1


FORMATS = {
    "int8": Format(Stored.INT8, 8, torch.int8, 127.0),
    "fp8_e4m3": Format(Stored.FP8_E4M3, 8, torch.float8_e4m3fn, 448.0),
    "fp8_e5m2": Format(Stored.FP8_E5M2, 8, torch.float8_e5m2, 57344.0),
    "int4": Format(Stored.INT4, 4, torch.uint8, 7.0),
    "nf4": Format(Stored.NF4, 4, torch.uint8, 1.0),
}
