"""The tuned tilings: one JSON file for all processes of a user, and how plans consult it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import filelock
import torch

from .. import folders
from .._version import __version__
from ..errors import CacheError, UnsupportedError
from ..ops import calls

__all__ = ["VARIABLE", "Choice", "Key", "chosen", "clear", "device_name", "path", "planned", "put", "read"]

#: Environment variable: ``0`` makes every plan take its default tiling.
VARIABLE = "MPS_FLASH_ATTN_TUNED"

#: What the file says it is; another text is another program's, or another version's.
_FORMAT = "mps-flash-attn tilings 1"

_Tiling = TypeVar("_Tiling")
_Plan = TypeVar("_Plan")


@dataclass(frozen=True)
class Key:
    """What a stored tiling is for.

    Attributes:
        device: name of the GPU, or ``simulator``.
        kernel: its name.
        shape_class: the class of problems, as the operation's plan names it.
        dtype: such as ``float16``.
        version: of this package; the entries of other versions stay in the file and are not used.
    """

    device: str
    kernel: str
    shape_class: str
    dtype: str
    version: str = __version__


@dataclass(frozen=True)
class Choice:
    """The best tiling that was found, by the names of its fields, beside what it gained.

    Attributes:
        cost: of a launch, in ``unit``.
        default_cost: of a launch with the default tiling; ``None`` where that one did not run.
        unit: ``ms``, or that of the simulator's model.
    """

    tiling: dict[str, int]
    cost: float
    default_cost: float | None
    unit: str


@functools.cache
def device_name(device_type: str) -> str:
    """What the GPU calls itself, ``simulator`` for CPU tensors."""
    if device_type == "cpu":
        return "simulator"
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    get_name = getattr(torch.backends.mps, "get_name", None)  # older PyTorch cannot tell
    return get_name() if get_name else "Apple GPU"


def path() -> Path:
    """The file; it need not exist."""
    return folders.cache_path("tilings.json")


def read() -> dict[Key, Choice]:
    """All entries. A file that is damaged or not ours is ignored with a warning: the next `put` writes it anew."""
    file = path()
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        warn_once(f"{file} cannot be read, default tilings are used: {error}")
        return {}
    try:
        return _parsed(text)
    except (ValueError, TypeError, KeyError) as error:
        warn_once(f"{file} holds no tilings of this package, default ones are used: {error}")
        return {}


def put(choices: Mapping[Key, Choice]) -> None:
    """Adds entries or replaces them; calls that were prepared are prepared anew.

    Raises:
        CacheError: the folder cannot be used.
    """
    with _locked() as file:
        _write(file, {**read(), **choices})
    calls.forget()


def clear() -> None:
    """Forgets every entry, of all devices and versions.

    Raises:
        CacheError: the folder cannot be used.
    """
    with _locked() as file:
        file.unlink(missing_ok=True)
    calls.forget()


def chosen(
    kernel: str, shape_class: str, dtype: torch.dtype, device: torch.device, kind: type[_Tiling]
) -> _Tiling | None:
    """The stored tiling for such problems on this device, or ``None``.

    Args:
        kind: the dataclass of the kernel's tilings.
    """
    if os.environ.get(VARIABLE) == "0":
        return None
    key = Key(device_name(device.type), kernel, shape_class, str(dtype).removeprefix("torch."))
    choice = _current().get(key)
    if choice is None:
        return None
    try:
        return _made(kind, choice.tiling)
    except (TypeError, ValueError) as error:
        warn_once(
            f"the stored tiling of {kernel} for {shape_class} is no {kind.__name__}, the default is used: {error}"
        )
        return None


def planned(
    kernel: str,
    shape_class: str,
    dtype: torch.dtype,
    device: torch.device,
    kind: type[_Tiling],
    plan: Callable[[_Tiling | None], _Plan],
) -> _Plan:
    """The plan with the stored tiling, or with the default one where none is stored or the stored one is refused.

    Args:
        kind: the dataclass of the kernel's tilings.
        plan: makes the plan from a tiling; ``None`` stands for the default.

    Raises:
        UnsupportedError: the plan refuses the problem.
    """
    tiling = chosen(kernel, shape_class, dtype, device, kind)
    if tiling is not None:
        try:
            return plan(tiling)
        except UnsupportedError as error:
            warn_once(f"the stored tiling of {kernel} for {shape_class} is refused, the default is used: {error}")
    return plan(None)


@functools.cache
def warn_once(text: str) -> None:
    """Warns once a process."""
    warnings.warn(text, stacklevel=3)


def _current() -> dict[Key, Choice]:
    """What `read` gives, read again when the file has changed."""
    file = path()
    try:
        status = file.stat()
    except OSError:
        return {}
    return _as_of(file, status.st_mtime_ns, status.st_size, status.st_ino)


@functools.lru_cache(maxsize=4)
def _as_of(file: Path, *version: int) -> dict[Key, Choice]:
    return read()


def _made(kind: type[_Tiling], values: Mapping[str, int]) -> _Tiling:
    """A tiling from what JSON made of its fields: booleans, and integers for integers and enumerations."""
    hints = get_type_hints(kind)
    expected = {name: bool if hint is bool else int for name, hint in hints.items()}
    if {name: type(value) for name, value in values.items()} != expected:
        raise ValueError(f"{values} does not have the fields {list(hints)}")
    return kind(**{name: hints[name](value) for name, value in values.items()})


def _parsed(text: str) -> dict[Key, Choice]:
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise ValueError(f"its format is not {_FORMAT!r}")
    return {Key(**entry["key"]): Choice(**entry["choice"]) for entry in data["entries"]}


def _write(file: Path, choices: Mapping[Key, Choice]) -> None:
    """Puts a whole new file in the place of the old one, so that a reader sees one or the other."""
    entries: list[dict[str, Any]] = [
        {"key": dataclasses.asdict(key), "choice": dataclasses.asdict(choice)} for key, choice in choices.items()
    ]
    text = json.dumps({"format": _FORMAT, "entries": entries}, indent=1, allow_nan=False)
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".tilings-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as new:
            new.write(text + "\n")
        Path(temporary).replace(file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _locked() -> Iterator[Path]:
    """The file, with all other writers kept out."""
    file = path()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(file.with_suffix(".lock")):
            yield file
    except OSError as error:
        raise CacheError(
            f"cannot keep tilings in {file}: {error}; set {folders.CACHE_VARIABLE} to a folder that can be written to"
        ) from error
