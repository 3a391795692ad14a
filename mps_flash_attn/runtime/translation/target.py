"""What a runtime says about the C++ that it wants Metal text translated to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .kernel_signature import BufferInfo, KernelInfo
from .metal_text import MetalText

__all__ = ["Target", "ThreadgroupVariable"]


@dataclass(frozen=True)
class ThreadgroupVariable:
    """A variable in threadgroup memory, its parts in C++.

    Attributes:
        name: the variable's name.
        kind: the type before the name.
        extents: the array's extents behind the name, ``""`` for none.
        alignment: the argument of ``alignas``, ``""`` for none.
        line: its line in the Metal text.
        before: name of the variable that was declared before it in the body of the same kernel; ``None`` for the first.
        is_outermost: whether it is declared in the body of a kernel, in none of its blocks.
    """

    name: str
    kind: str
    extents: str
    alignment: str
    line: int
    before: str | None
    is_outermost: bool


class Target(Protocol):
    """One kind of C++. Instances are plain values: two that are equal give the same text."""

    @property
    def name(self) -> str:
        """Part of the key under which translations are cached."""

    @property
    def digest(self) -> str:
        """A hash of the target's own code, likewise."""

    @property
    def macros(self) -> tuple[tuple[str, str], ...]:
        """Macros that the Metal text is preprocessed with, beside Metal's own."""

    @property
    def short_loop(self) -> str:
        """What stands for ``for`` before a loop over a ``short``: those run over what a lane keeps in registers."""

    def whole(self, body: str, text: MetalText) -> str:
        """A complete C++ text around a translated body, on whose first line the body's first line is."""

    def runner(self, kernel: KernelInfo, callee: str, arguments: Sequence[str | BufferInfo]) -> str:
        """The function that runs one thread of a kernel. Arguments are names of the thread's positions, and buffers."""

    def threadgroup_variable(self, variable: ThreadgroupVariable) -> str:
        """Statements, without the last semicolon, that declare a variable."""
