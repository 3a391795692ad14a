"""What the parameters of a kernel say: which buffers it takes and what it wants to know of its thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ADDRESS_SPACES", "BufferInfo", "KernelInfo", "Parameter", "UnsupportedParameterError", "bind"]

ADDRESS_SPACES = frozenset(
    {"constant", "device", "object_data", "ray_data", "thread", "threadgroup", "threadgroup_imageblock"}
)

# Attributes that say where the thread is.
_POSITIONS = frozenset(
    {
        "dispatch_simdgroups_per_threadgroup",
        "dispatch_threads_per_threadgroup",
        "quadgroup_index_in_simdgroup",
        "quadgroup_index_in_threadgroup",
        "quadgroups_per_threadgroup",
        "simdgroup_index_in_threadgroup",
        "simdgroups_per_threadgroup",
        "thread_execution_width",
        "thread_index_in_quadgroup",
        "thread_index_in_simdgroup",
        "thread_index_in_threadgroup",
        "thread_position_in_grid",
        "thread_position_in_threadgroup",
        "threadgroup_position_in_grid",
        "threadgroups_per_grid",
        "threads_per_grid",
        "threads_per_simdgroup",
        "threads_per_threadgroup",
    }
)


@dataclass(frozen=True)
class BufferInfo:
    """One buffer that a kernel takes.

    Attributes:
        name: the parameter's name.
        index: n of ``[[buffer(n)]]``.
        address_space: ``"device"`` or ``"constant"``.
        type: the parameter's type as written, without its address space.
        is_const: whether the kernel can only read it.
    """

    name: str
    index: int
    address_space: str
    type: str
    is_const: bool

    @property
    def is_reference(self) -> bool:
        """Whether the parameter is a reference rather than a pointer."""
        return self.type.endswith("&")


@dataclass(frozen=True)
class KernelInfo:
    """One kernel of a text.

    Attributes:
        name: the host name.
        index: i of the C++ function ``simt_kernel_<i>`` that runs one thread of it.
        buffers: what it takes, by index.
    """

    name: str
    index: int
    buffers: tuple[BufferInfo, ...]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel.

    Attributes:
        words: its declaration, type and name, without attributes.
        attributes: name -> argument.
    """

    words: tuple[str, ...]
    attributes: Mapping[str, str]

    @staticmethod
    def parse(words: list[str], attributes: Mapping[str, str]) -> Parameter:
        """Makes ``T x[n]``, which passes a pointer, ``T* x``."""
        if words[-1] == "]":
            declarator = words.index("[")
            words = [*words[: declarator - 1], "*", words[declarator - 1]]
        return Parameter(tuple(words), attributes)


class UnsupportedParameterError(ValueError):
    """A kernel has a parameter that cannot be filled."""


def bind(parameters: tuple[Parameter, ...]) -> tuple[list[str | BufferInfo], tuple[BufferInfo, ...]]:
    """Finds out what a kernel is called with.

    Args:
        parameters: of the kernel. Buffers without ``[[buffer(n)]]`` are counted on from the one before.

    Returns:
        For each parameter the buffer, or the name of the position of the thread; and the buffers, by index.

    Raises:
        UnsupportedParameterError: naming the parameter.
    """
    arguments: list[str | BufferInfo] = []
    buffers: list[BufferInfo] = []
    for parameter in parameters:
        words = parameter.words
        spaces = [word for word in words if word in ADDRESS_SPACES]
        position = next((name for name in parameter.attributes if name in _POSITIONS), None)
        if position is not None:
            arguments.append(position)
        elif spaces and spaces[0] in ("constant", "device") and ("*" in words or "&" in words):
            number = parameter.attributes.get("buffer", str(buffers[-1].index + 1 if buffers else 0))
            if not number.isdecimal():
                raise UnsupportedParameterError(f"{' '.join(words)!r}: [[buffer({number})]] is no number")
            kind = " ".join(word for word in words[:-1] if word not in ADDRESS_SPACES)
            is_const = spaces[0] == "constant" or "const" in words
            buffers.append(BufferInfo(words[-1], int(number), spaces[0], kind, is_const))
            arguments.append(buffers[-1])
        else:
            attributes = ", ".join(parameter.attributes) or "none"
            raise UnsupportedParameterError(
                f"{' '.join(words)!r} is not supported (attributes: {attributes}); accepted are device and constant "
                "buffers, and positions of the thread"
            )
    indices = [buffer.index for buffer in buffers]
    if len(set(indices)) != len(indices):
        raise UnsupportedParameterError(f"an index of a buffer is used twice: {indices}")
    return arguments, tuple(sorted(buffers, key=lambda buffer: buffer.index))
