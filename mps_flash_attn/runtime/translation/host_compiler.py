"""The C++ compiler of this machine, whose preprocessor all translated Metal text goes through."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import CompilerNotFoundError

__all__ = ["Compiler", "find_compiler"]

_COMPILER_VARIABLES = ("MPS_FLASH_ATTN_CXX", "CXX")
_COMPILER_NAMES = ("g++", "clang++")
_XCODE_SELECT = "/usr/bin/xcode-select"


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        command: the program and the arguments that always go with it.
        version: what it says of itself; part of the key under which its products are cached.
    """

    command: tuple[str, ...]
    version: str

    def run(self, arguments: Sequence[str], *, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs the compiler with messages in English, feeding it ``text``. A failure is the caller's to judge."""
        return subprocess.run(
            [*self.command, *arguments],
            input=text,
            text=True,
            capture_output=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )

    @property
    def is_clang(self) -> bool:
        """Whether this is clang or one of its descendants; everything else is taken for GCC."""
        return "clang" in self.version


def find_compiler() -> Compiler:
    """Returns the compiler of ``MPS_FLASH_ATTN_CXX`` or ``CXX``, else ``g++``, else ``clang++``.

    Raises:
        CompilerNotFoundError: naming what was looked for.
    """
    return _find_compiler(tuple(os.environ.get(name, "") for name in (*_COMPILER_VARIABLES, "PATH")))


@functools.lru_cache(maxsize=8)
def _find_compiler(environment: tuple[str, ...]) -> Compiler:
    requested = next((value for value in environment[: len(_COMPILER_VARIABLES)] if value.strip()), None)
    for command in [shlex.split(requested)] if requested else [[name] for name in _COMPILER_NAMES]:
        program = shutil.which(command[0])
        if program is not None and not _would_open_installer(program):
            version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
            if version.returncode == 0:
                return Compiler(tuple(command), version.stdout)
    variables = " and ".join(_COMPILER_VARIABLES)
    raise CompilerNotFoundError(
        (
            f"the C++ compiler {requested!r}, named by {variables}, cannot be run"
            if requested
            else f"no C++ compiler found: looked for {' and '.join(_COMPILER_NAMES)} in PATH ({variables} are not set)"
        )
        + "; kernels are preprocessed, and for the simulator compiled, with g++ 12 or clang 14 or newer: on Debian or "
        "Ubuntu, `sudo apt-get install g++`; on a Mac, `xcode-select --install`"
    )


def _would_open_installer(program: str) -> bool:
    """Whether this is a Mac without Apple's tools, where the programs in /usr/bin open a dialog that installs them."""
    if sys.platform != "darwin" or Path(program).parent != Path("/usr/bin"):
        return False
    return subprocess.run([_XCODE_SELECT, "--print-path"], capture_output=True, check=False).returncode != 0
