"""Checks of kernels that no GPU makes: races, bounds, uninitialised memory, divergence, order of threads."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...errors import KernelCheckError
from . import observe, strict
from .compiler import INCLUDE

__all__ = ["check", "is_checking"]

_PLACE = re.compile(r"<pc:(\d+)>")
_MOST_FINDINGS = 20


class _Checker:
    def __init__(self, seed: int, random_schedules: int, strict_parse: bool) -> None:
        self._seed = seed
        self._random_schedules = random_schedules
        self._strict_parse = strict_parse

    def launch(self, launch: observe.Launch) -> None:
        if self._strict_parse and launch.metal is not None and (illegal := _illegal(launch.metal)):
            raise KernelCheckError(launch.name, illegal)
        findings = launch.kernel.check(
            launch.arguments,
            launch.threads,
            launch.group_size,
            launch.threadgroup_bytes,
            self._seed,
            self._random_schedules,
        )
        if findings:
            raise KernelCheckError(launch.name, _with_lines(findings, Path(launch.kernel.library.path)))


@contextlib.contextmanager
def check(*, seed: int | None = None, random_schedules: int = 1, strict_parse: bool | None = None) -> Iterator[None]:
    """Checks every kernel that the calling thread launches on the simulator, its own and those of this package.

    Its text is parsed strictly first, with real address spaces: what Apple's compiler would reject is a fault. Then
    each launch runs several times from the same inputs, its threads forward, backward and in random order, in a build
    that reports each access to memory. These are faults:

    * two accesses to the same bytes of device or threadgroup memory, one of them a write, that no barrier with the
      right memory flag orders;
    * an access outside of the tensors and constants that were passed, outside of a threadgroup array, or outside of
      an array of known length;
    * a read of threadgroup memory that was not written;
    * a barrier, simdgroup operation or threadgroup array that only some of the threads reach;
    * results whose bits depend on the order of threads.

    Tensors change only when no fault was found. Tensors that the package itself makes start as NaN.

    Args:
        seed: of the random orders; a fresh one by default. Messages name it where it matters.
        random_schedules: how many random orders to try.
        strict_parse: whether to parse strictly; by default where libclang is installed (the extra ``check``).

    Raises:
        KernelCheckError: from the launch, listing what was found.
        CompilerNotFoundError: from the launch, if ``strict_parse`` asks for a libclang that is not there.

    Example:
        >>> with check():
        ...     library.kernel(x, threads=1024)
    """
    if seed is None:
        seed = secrets.randbits(32)
    if strict_parse is None:
        strict_parse = importlib.util.find_spec("clang") is not None
    with observe.observing(_Checker(seed, random_schedules, strict_parse)):
        yield


@functools.lru_cache(maxsize=256)
def _illegal(metal: str) -> tuple[str, ...]:
    """What the strict parse has against a text."""
    return tuple(f"strict parse: {problem}" for problem in strict.diagnose(metal))


def is_checking() -> bool:
    """Whether launches of the calling thread are being checked, so that new outputs are to be filled with NaN."""
    return isinstance(observe.current(), _Checker)


def _with_lines(findings: Sequence[str], library: Path) -> tuple[str, ...]:
    """Puts file and line in the place of addresses. Of findings of one kind at the same lines, the first counts."""
    addresses = sorted({int(address) for text in findings for address in _PLACE.findall(text)})
    lines = _lines(library, addresses)
    distinct: dict[object, str] = {}
    for text in findings:
        kind = text.partition(":")[0]
        places = sorted(lines[int(address)] for address in _PLACE.findall(text))
        distinct.setdefault((kind, *places) if places else text, _PLACE.sub(lambda place: lines[int(place[1])], text))
    texts = tuple(distinct.values())
    if len(texts) > _MOST_FINDINGS:
        return (*texts[:_MOST_FINDINGS], f"and {len(texts) - _MOST_FINDINGS} more")
    return texts


def _lines(library: Path, addresses: Sequence[int]) -> dict[int, str]:
    """Where in the Metal text the calls lie that return to these addresses of a library."""
    lines = {address: f"code offset {address:#x} of {library}" for address in addresses}
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    if tool is None or not addresses:
        return lines
    # One address in front of where a call returns to is still in the call. For each address, -a prints it and -i the
    # places that were inlined into each other, innermost first.
    output = subprocess.run(
        [tool, "-a", "-i", "-e", str(library), *(hex(address - 1) for address in addresses)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    address = None
    for line in output.splitlines():
        if line.startswith("0x"):
            address = int(line, 16) + 1
        elif address is not None and not line.startswith(("?", str(INCLUDE.resolve()), str(INCLUDE))):
            lines[address] = Path(line.split(" (discriminator")[0]).name
            address = None
    return lines
