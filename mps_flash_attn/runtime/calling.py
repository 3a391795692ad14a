"""The calling convention of ``torch.mps.compile_shader``, as far as it does not depend on the runtime."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["MAX_CONSTANT_BYTES", "Argument", "cast_of", "grid_and_group", "pack_numbers"]

MAX_CONSTANT_BYTES = 4096
"""The most that can be passed by value in one argument."""

Argument = Tensor | int | float | Sequence[int] | Sequence[float] | Sequence[Tensor]

_CASTS = {"int8": "b", "uint8": "B", "int16": "h", "int32": "i", "fp16": "e", "bf16": "bf16"}


def cast_of(position: int, casts: str | Mapping[int, str] | None) -> str | None:
    """What ``arg_casts`` says of the argument at a position."""
    return casts if isinstance(casts, str) or casts is None else casts.get(position)


def pack_numbers(name: str, values: Sequence[Any], cast: str | None) -> bytes:
    """Numbers passed by value: int64 or float32 by the first one's kind, or what ``cast`` says.

    Raises:
        ValueError: the cast is unknown, or there are too many numbers; ``name`` says of which argument.
        TypeError: a number does not fit.
    """
    whole = isinstance(values[0], int)
    code = ("q" if whole else "f") if cast is None else _CASTS.get(cast)
    if code is None:
        raise ValueError(f"{name}: unknown cast {cast!r} in arg_casts; accepted are {', '.join(map(repr, _CASTS))}")
    try:
        if code == "bf16":
            data = torch.tensor(values, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
        else:
            whole_numbers = [int(value) for value in values] if cast is not None and code != "e" else values
            data = struct.pack(f"{len(values)}{code}", *whole_numbers)
    except (struct.error, OverflowError, TypeError, ValueError) as error:
        kind = cast or ("int64" if whole else "float32")
        raise TypeError(f"{name} cannot be passed as {kind}: {error}, got {list(values)!r}") from error
    if len(data) > MAX_CONSTANT_BYTES:
        raise ValueError(f"{name} takes {len(data)} bytes; at most {MAX_CONSTANT_BYTES} can be passed by value")
    return data


def grid_and_group(
    kernel: str,
    args: Sequence[Argument],
    threads: int | Sequence[int] | None,
    group_size: int | Sequence[int] | None,
    limit: int,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of the grid and of a threadgroup, three numbers each.

    Args:
        kernel: its name, for messages.
        args: what it is called with.
        threads: of the grid; by default one for each element of the first tensor.
        group_size: threads of a threadgroup; by default as many as allowed, along x.
        limit: the most threads that a threadgroup may have.

    Raises:
        ValueError: a size is no size, or too large.
    """
    if threads is None:
        first = next((arg for arg in args if isinstance(arg, Tensor)), None)
        if first is None:
            raise ValueError(f"kernel {kernel!r}: threads is needed, as no argument is a tensor")
        threads = first.numel()
    grid = _size(kernel, "threads", threads)
    if group_size is None:
        group: tuple[int, ...] = (limit, *(1 for _ in grid[1:]))
    else:
        group = _size(kernel, "group_size", group_size)
        if len(group) != len(grid):
            raise ValueError(f"kernel {kernel!r}: group_size {group} and threads {grid} must have equally many numbers")
    missing = (1,) * (3 - len(grid))
    grid, group = grid + missing, group + missing
    if not 0 < group[0] * group[1] * group[2] <= limit:
        raise ValueError(
            f"kernel {kernel!r}: group_size {group} makes {group[0] * group[1] * group[2]} threads; a "
            f"threadgroup has 1 to {limit}"
        )
    return grid, group


def _size(kernel: str, name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    size = (value,) if isinstance(value, int) else tuple(value)
    if not 1 <= len(size) <= 3 or not all(isinstance(n, int) and 0 <= n < 1 << 32 for n in size):
        raise ValueError(
            f"kernel {kernel!r}: {name} must be an int or one to three ints from 0 to 2**32 - 1, got {value!r}"
        )
    return size
