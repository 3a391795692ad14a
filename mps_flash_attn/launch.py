"""The launch contract: what an operation asks of a runtime, and what a runtime says of its device.

Runtimes speak the calling convention of ``torch.mps.compile_shader``: ``compile_shader(text)`` gives a library, and
``library.kernel(*tensors, words, threads=, group_size=)`` launches. A `Launch` is all of that but the tensors.
"""

from __future__ import annotations

import contextlib
import functools
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from . import source

__all__ = [
    "CHUNK_BYTES",
    "LANES",
    "BoundLaunch",
    "Capabilities",
    "Launch",
    "ParamStruct",
    "Runtime",
    "bind",
    "dry_run",
    "empty",
    "empty_like",
    "poisoned",
]

#: Threads of a simdgroup.
LANES = 32
#: What a lane moves at once, from an address that is a multiple of it: a ``chunk`` of ``msl/types.h``.
CHUNK_BYTES = 16
#: The most bytes of parameters that Metal's ``setBytes`` takes.
MAX_PARAM_BYTES = 4096


@dataclass(frozen=True)
class Capabilities:
    """What plans need to know of a device."""

    threadgroup_bytes: int = 32 * 1024
    max_threads: int = 1024
    #: Cores of an Apple GPU, multiprocessors of an NVIDIA one; the fewest of Apple's where nobody can tell.
    cores: int = 8
    #: Whether kernels may be built for ``double``, which no Apple GPU has.
    float64: bool = False
    #: What the matrix layer of ``msl/tile.h`` is made of, which decides the tiles that are fast.
    matrix_unit: Literal["simdgroup_matrix", "mma"] = "simdgroup_matrix"
    #: Whether four simdgroups can also multiply together what is in threadgroup memory (``msl/panels.h``).
    wgmma: bool = False


class Runtime(Protocol):
    """One way to run Metal text; the modules of ``runtime/`` are its instances."""

    #: What plans may count on.
    CAPABILITIES: Capabilities

    def compile_shader(self, source: str) -> Any:
        """A library of the kernels in ``source``, with the face of ``torch.mps.compile_shader``."""

    def is_checking(self) -> bool:
        """Whether launches are being checked, so that new outputs are to be filled with NaN."""

    def unavailable(self) -> str | None:
        """Why this machine cannot use it, in words for its user; ``None`` if it can."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch without its tensors, as a plan decides it.

    Attributes:
        file: the ``.metal`` file, relative to the package.
        kernel: the kernel's name in it.
        defines: the specialisation, in the order of the prelude.
        words: the params struct as 64-bit words; it follows the tensors.
        threads: threads of the whole grid in x, y, z.
        group_size: threads of a threadgroup in x, y, z.
        threadgroup_bytes: static threadgroup memory.
    """

    file: str
    kernel: str
    defines: tuple[source.Define, ...]
    words: tuple[int, ...]
    threads: tuple[int, int, int]
    group_size: tuple[int, int, int]
    threadgroup_bytes: int

    @property
    def text(self) -> str:
        """The kernel's specialised Metal text."""
        return source.specialise(self.file, self.defines)


BoundLaunch = Callable[..., None]

_dry = False


def bind(launch: Launch, runtime: Runtime) -> BoundLaunch:
    """A function that launches on the tensors it is given, in the order of the kernel's buffers.

    Compiles the kernel where it was not compiled before.

    Raises:
        KernelCompileError: with the compiler's words.
    """
    kernel = getattr(runtime.compile_shader(launch.text), launch.kernel)
    words, threads, group_size = list(launch.words), launch.threads, launch.group_size

    def run(*tensors: Tensor) -> None:
        if not _dry:
            kernel(*tensors, words, threads=threads, group_size=group_size)

    return run


@contextlib.contextmanager
def dry_run() -> Iterator[None]:
    """Makes every launch return before its kernel is called, so that what remains can be timed. Results are garbage."""
    global _dry
    before, _dry = _dry, True
    try:
        yield
    finally:
        _dry = before


def empty_like(tensor: Tensor, runtime: Runtime, dtype: torch.dtype | None = None) -> Tensor:
    """``torch.empty_like``, filled with NaN while the runtime checks, so that an element never written is seen."""
    return poisoned(torch.empty_like(tensor, dtype=dtype), runtime)


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, runtime: Runtime) -> Tensor:
    """``torch.empty``, filled with NaN while the runtime checks."""
    return poisoned(torch.empty(shape, dtype=dtype, device=device), runtime)


def poisoned(output: Tensor, runtime: Runtime) -> Tensor:
    """The output, filled with NaN while the runtime checks."""
    return output.fill_(torch.nan) if runtime.is_checking() else output


@dataclass(frozen=True)
class ParamStruct:
    """The layout of a params struct, read from the header that declares it.

    Every field is 8 bytes wide: ``long name;``, ``long name[n];`` or ``alignas(8) accum name;``.
    """

    fields: tuple[tuple[str, str, int], ...] = field(repr=False)

    @classmethod
    @functools.cache
    def read(cls, header: str, name: str) -> ParamStruct:
        """The layout of struct ``name`` in ``header``, a path relative to the package."""
        text = re.sub(r"//[^\n]*", "", source.flatten(header))
        body = re.search(rf"struct\s+(?:alignas\(8\)\s+)?{name}\s*\{{(.*?)\}};", text, re.DOTALL)
        if body is None:
            raise LookupError(f"{header} declares no struct {name}")
        fields = []
        for declaration in filter(None, map(str.strip, body[1].split(";"))):
            match = re.fullmatch(r"(long|alignas\(8\) accum) (\w+)(?:\[(\d+)\])?", declaration)
            if match is None:
                raise ValueError(f"{header}: {declaration!r} is not a field of 8 bytes")
            fields.append((match[2], "long" if match[1] == "long" else "accum", int(match[3] or 1)))
        return cls(tuple(fields))

    @property
    def size(self) -> int:
        """Bytes of the struct."""
        return 8 * sum(count for _, _, count in self.fields)

    def pack(self, values: Mapping[str, int | float | Sequence[int]], accumulator: str) -> tuple[int, ...]:
        """The struct as 64-bit words.

        Args:
            values: one entry a field.
            accumulator: ``"float"`` or ``"double"``, what ``accum`` stands for.
        """
        if values.keys() != self._names:
            raise ValueError(f"params are {sorted(values)}, the struct has {[name for name, _, _ in self.fields]}")
        flat: list[int | float] = []
        for name, _, count in self.fields:
            value = values[name]
            numbers = (value,) if isinstance(value, (int, float)) else value
            if len(numbers) != count:
                raise ValueError(f"{name} has {len(numbers)} numbers, the struct's field {count}")
            flat += numbers
        packed = self._formats[accumulator].pack(*flat)
        return struct.unpack(f"<{len(packed) // 8}q", packed)

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(name for name, _, _ in self.fields)

    @functools.cached_property
    def _formats(self) -> dict[str, struct.Struct]:
        """The whole struct, by what ``accum`` stands for."""
        return {
            accumulator: struct.Struct(
                "<" + "".join(f"{count}q" if kind == "long" else code for _, kind, count in self.fields)
            )
            for accumulator, code in (("float", "f4x"), ("double", "d"))
        }
