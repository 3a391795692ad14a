"""Kernel text: one flattened Metal source per specialisation, the same for every runtime."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from pathlib import Path

__all__ = ["Define", "flatten", "kernel_files", "specialise"]

Define = tuple[str, "str | int"]

_PACKAGE = Path(__file__).parent
_INCLUDE = re.compile(r'\s*#\s*include\s*"(?P<path>[^"]+)"')
_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")


def kernel_files() -> tuple[str, ...]:
    """Every ``.metal`` file of the package, as paths relative to it."""
    return tuple(sorted(str(path.relative_to(_PACKAGE)) for path in _PACKAGE.glob("ops/*/*.metal")))


@functools.cache
def flatten(path: str) -> str:
    """The text of a file of this package with its quoted includes in place, each once.

    ``#line`` directives keep the file names and lines that compilers print. ``#include <...>`` stays as it is.

    Args:
        path: relative to the package, as in the include lines.
    """
    return "".join(_lines(path, set()))


def _lines(path: str, included: set[str]) -> Iterable[str]:
    included.add(path)
    yield f'#line 1 "{path}"\n'
    for number, line in enumerate((_PACKAGE / path).read_text(encoding="utf-8").splitlines(keepends=True), start=1):
        include = _INCLUDE.match(line)
        if include is None:
            yield "\n" if _ONCE.match(line) else line
        elif include["path"] not in included:
            yield from _lines(include["path"], included)
            yield f'#line {number + 1} "{path}"\n'
        else:
            yield "\n"


@functools.lru_cache(maxsize=512)
def specialise(path: str, defines: tuple[Define, ...]) -> str:
    """A file of this package, flattened, behind a prelude of ``#define`` lines."""
    prelude = "".join(f"#define {name} {value}\n" for name, value in defines)
    return prelude + flatten(path)
