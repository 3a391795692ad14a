"""The CUDA C++ that Metal text is translated to."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cache import content_key
from ..translation.kernel_signature import BufferInfo, KernelInfo
from ..translation.metal_text import MetalText
from ..translation.target import ThreadgroupVariable

__all__ = ["BYTES_REMARK", "CudaTarget", "entry_point", "travels_by_value"]

#: In the assembly of a kernel this comment tells how much threadgroup memory its variables take, so far.
BYTES_REMARK = "threadgroup bytes:"


def entry_point(kernel: KernelInfo) -> str:
    """The name under which a kernel is compiled."""
    return "metal_" + re.sub(r"\W", "_", kernel.name)


def travels_by_value(buffer: BufferInfo) -> bool:
    """Whether a buffer's contents are passed with the launch, as CUDA passes arguments, rather than an address."""
    return buffer.address_space == "constant" and buffer.is_reference


@dataclass(frozen=True)
class CudaTarget:
    """CUDA C++ as a target of translation."""

    name: str = "cuda"
    macros: tuple[tuple[str, str], ...] = (("METAL_ON_CUDA", "1"),)
    #: Registers have no index: an array stays in them only if the loops over it are unrolled.
    short_loop: str = '_Pragma("unroll") for'

    @property
    def digest(self) -> str:
        """A hash of this file."""
        return _digest()

    def whole(self, body: str, text: MetalText) -> str:
        """A complete text around a translated body: all in the namespace of the shim."""
        return f'#include "metal_stdlib"\nnamespace metal_text {{\n{body}\n}}  // namespace metal_text\n'

    def runner(self, kernel: KernelInfo, callee: str, arguments: Sequence[str | BufferInfo]) -> str:
        """The ``__global__`` function of a kernel: the grid's size first, then its buffers by index."""
        buffers = {buffer.index: buffer for buffer in kernel.buffers}
        parameters = ["const ::simt::Size simt_threads"]
        for index in range(max(buffers, default=-1) + 1):
            buffer = buffers.get(index)
            if buffer is not None and travels_by_value(buffer):
                kind = f"::simt::Parameter<{arguments.index(buffer)}, decltype({callee})>"
                parameters.append(f"const __grid_constant__ {kind} simt_buffer_{index}")
            else:
                parameters.append(f"void* simt_buffer_{index}")
        return (
            f'extern "C" __global__ void SIMT_BOUNDS {entry_point(kernel)}({", ".join(parameters)}) '
            "{ const ::simt::Thread simt_thread(simt_threads); if (!simt_thread.is_inside()) return; "
            f"{callee}({', '.join(map(_argument, arguments))}); }}"
        )

    def threadgroup_variable(self, variable: ThreadgroupVariable) -> str:
        """A place in the threadgroup's block of memory behind the variable before it.

        Those of inner blocks, which end with the block, are left to the compiler: at most 48 KiB of them.
        """
        name = variable.name
        alias = f"simt_type_of_{name}"
        alignment = variable.alignment or f"alignof({alias})"
        if not variable.is_outermost:
            aligned = f"alignas({variable.alignment}) " if variable.alignment else ""
            return f"__shared__ {aligned}{variable.kind} {name}{variable.extents}"
        before = "0" if variable.before is None else f"simt_end_of_{variable.before}"
        return (
            f"typedef {variable.kind} {alias}{variable.extents}; "
            f"constexpr unsigned simt_start_of_{name} = ::simt::start_behind({before}, {alignment}); "
            f"constexpr unsigned simt_end_of_{name} = simt_start_of_{name} + sizeof({alias}); "
            f'asm volatile("// {BYTES_REMARK} %0" :: "n"(simt_end_of_{name})); '
            f"{alias}& {name} = *reinterpret_cast<{alias}*>(::simt::threadgroup_memory + simt_start_of_{name})"
        )


def _argument(argument: str | BufferInfo) -> str:
    if isinstance(argument, str):
        return f"simt_thread.{argument}()"
    if travels_by_value(argument):
        return f"simt_buffer_{argument.index}"
    wrapper = "BufferReference" if argument.is_reference else "BufferPointer"
    return f"::simt::{wrapper}{{simt_buffer_{argument.index}}}"


@functools.cache
def _digest() -> str:
    return content_key(Path(__file__).read_text())
