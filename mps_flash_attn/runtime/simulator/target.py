"""The C++ that the simulator compiles: each thread of a kernel is a call, services come through its own headers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cache import content_key
from ..translation.kernel_signature import BufferInfo, KernelInfo
from ..translation.metal_text import MetalText
from ..translation.target import ThreadgroupVariable

__all__ = ["SimulatorTarget"]

_PROLOGUE = '#pragma GCC visibility push(hidden)\n#include "metal_stdlib"\n'
# Has each matrix product computed at once, rather than when its result is asked for.
_EAGER = "#define SIMT_EAGER 1\n"
_EPILOGUE = """
#pragma GCC visibility pop
extern "C" __attribute__((visibility("default"))) const uint32_t simt_abi = simt::kAbiVersion;
"""


@dataclass(frozen=True)
class SimulatorTarget:
    """The simulator as a target of translation."""

    name: str = "simulator"
    macros: tuple[tuple[str, str], ...] = ()
    short_loop: str = "for"
    digest: str = content_key(Path(__file__).read_text())

    def whole(self, body: str, text: MetalText) -> str:
        """A complete C++ text around a translated body."""
        return (_EAGER if _keeps_elements(text.words) else "") + _PROLOGUE + body + _EPILOGUE

    def runner(self, kernel: KernelInfo, callee: str, arguments: Sequence[str | BufferInfo]) -> str:
        """``simt_kernel_<i>(buffers)``, exported from the library."""
        return (
            f'extern "C" __attribute__((visibility("default"))) void simt_kernel_{kernel.index}(void* const* buffers) '
            f"{{ (void)buffers; ::simt::start_log(::simt::self()); {callee}({', '.join(map(_argument, arguments))}); }}"
        )

    def threadgroup_variable(self, variable: ThreadgroupVariable) -> str:
        """A reference into the threadgroup's memory."""
        alias = f"simt_type_of_{variable.name}"
        alignment = f", {variable.alignment}" if variable.alignment else ""
        return (
            f"typedef {variable.kind} {alias}{variable.extents}; {alias}& {variable.name} = "
            f'::simt::threadgroup_variable<{alias}{alignment}>("{variable.name}", {variable.line})'
        )


def _argument(argument: str | BufferInfo) -> str:
    if isinstance(argument, str):
        return f"::simt::{argument}()"
    wrapper = "BufferReference" if argument.is_reference else "BufferPointer"
    return f"::simt::{wrapper}{{buffers[{argument.index}]}}"


def _keeps_elements(words: Sequence[str]) -> bool:
    """Whether a variable refers to elements of a matrix, and so may be read without asking the matrix."""
    for index, word in enumerate(words):
        if word != "thread_elements":
            continue
        begin = index
        while words[begin - 1] not in (";", "{", "}") and begin > 0:
            begin -= 1
        if re.search(r"[&*] \w+ =", " ".join(words[begin:index])):
            return True
    return False
