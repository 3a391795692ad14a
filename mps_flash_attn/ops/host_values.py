"""Small tensors of integers as the host sees them: lengths, tables of pages, whatever is checked before a launch.

To read a tensor on a GPU is to wait for all that was queued before it, so what was read is remembered for as long as
the tensor lives and nobody writes to it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import UnsupportedError

__all__ = ["filled", "host_values", "require_distinct", "require_entries"]

#: By tensor: what tells its state, and the values that it had in that state.
_known = WeakTensorKeyDictionary()


def host_values(tensor: Tensor, name: str = "a tensor") -> tuple[int, ...]:
    """The elements of a tensor of integers, in row-major order.

    Values of a tensor on a GPU are remembered by the tensor object, its memory and PyTorch's count of in-place
    changes. A kernel that writes to it behind PyTorch's back, or through ``tensor.data``, is not noticed: kernels must
    not rely on these values to stay within bounds. Tensors in the host's memory, and those made under
    ``torch.inference_mode``, which have no such count, are read each time.

    Args:
        name: of the argument, for messages.

    Raises:
        UnsupportedError: the values are not known, and a CUDA graph is being captured, in which nothing can be read.
    """
    if not _is_remembered(tensor):
        return _read(tensor, name)
    state = _state(tensor)
    known: tuple[object, tuple[int, ...]] | None = _known.get(tensor)
    if known is not None and known[0] == state:
        return known[1]
    values = _read(tensor, name)
    _known[tensor] = state, values
    return values


def filled(value: int, count: int, device: torch.device) -> Tensor:
    """A new int32 tensor ``[count]`` of one value, which nobody has to read to know it."""
    tensor = torch.full((count,), value, dtype=torch.int32, device=device)
    if not torch.compiler.is_compiling() and _is_remembered(tensor):
        _known[tensor] = _state(tensor), (value,) * count
    return tensor


def _state(tensor: Tensor) -> object:
    return tensor._version, tensor.data_ptr(), tensor.shape, tensor.stride()


def _is_remembered(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu" and not tensor.is_inference()


def _read(tensor: Tensor, name: str) -> tuple[int, ...]:
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise UnsupportedError(
            f"{name} is on {tensor.device} and a CUDA graph is being captured, in which its values cannot be read to "
            "check them; accepted is a tensor that an earlier call has read and nobody has changed since"
        )
    return tuple(tensor.flatten().tolist())


def require_entries(name: str, values: tuple[int, ...], least: int, most: int, words: str) -> None:
    """Every one of these values of an argument within a range, described by ``words``.

    Raises:
        ValueError: naming the first that is not, and its place.
    """
    for place, value in enumerate(values):
        if not least <= value <= most:
            raise ValueError(f"{name}[{place}] is {value}; accepted are {least} to {most}, {words}")


def require_distinct(name: str, values: tuple[int, ...], words: str) -> None:
    """No value twice among those of an argument, because of ``words``.

    Raises:
        ValueError: naming the first that is, and both places.
    """
    places: dict[int, int] = {}
    for place, value in enumerate(values):
        first = places.setdefault(value, place)
        if first != place:
            raise ValueError(f"{name}[{place}] is {value}, as {name}[{first}] is; accepted are distinct ones, {words}")
