"""The package's exceptions. Bad arguments raise ``ValueError`` or ``TypeError``; these are for everything else."""

from __future__ import annotations

__all__ = [
    "CacheError",
    "CompilerNotFoundError",
    "KernelCheckError",
    "KernelCompileError",
    "KernelLaunchError",
    "MPSFlashAttnError",
    "UnsupportedError",
]


class MPSFlashAttnError(RuntimeError):
    """Base of every error that is not a bad argument."""


class KernelCompileError(MPSFlashAttnError):
    """A kernel did not compile. The message holds the compiler's own words, with lines of the Metal text."""


class CompilerNotFoundError(KernelCompileError):
    """The simulator needs a C++ compiler and found none."""


class CacheError(MPSFlashAttnError):
    """The folder for compiled kernels cannot be used."""


class KernelLaunchError(MPSFlashAttnError):
    """A launch was refused or failed. The message names the kernel and holds the driver's own words."""


class KernelCheckError(MPSFlashAttnError):
    """The simulator's checks found a fault in a kernel.

    Attributes:
        findings: one text a fault, each naming kernel, line, thread and memory.
    """

    def __init__(self, kernel: str, findings: tuple[str, ...]) -> None:
        self.findings = findings
        super().__init__("\n".join((f"kernel {kernel!r} failed {len(findings)} check(s):", *findings)))


class UnsupportedError(ValueError):
    """A well-formed problem that this package refuses. ``patch()`` passes such calls on to PyTorch."""
