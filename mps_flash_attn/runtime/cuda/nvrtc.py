"""CUDA's run-time compiler: translated text to machine code for one architecture."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cuda.bindings import nvrtc

from ...errors import CompilerNotFoundError, KernelCompileError, UnsupportedError
from ..cache import Cache, content_key
from .target import BYTES_REMARK

__all__ = ["OLDEST_CAPABILITY", "Architecture", "Binary", "compile_cached", "why_no_nvrtc"]

INCLUDE = Path(__file__).parent / "csrc" / "include"
"""The folder of the headers that stand in for Metal's."""

#: Compute capability from which on the shim's instructions exist: bfloat conversions and asynchronous copies.
OLDEST_CAPABILITY = (8, 0)

Architecture = tuple[int, int]
"""A compute capability."""

_OPTIONS = ("-default-device", "-std=c++17", "-lineinfo", "-w", "--ptxas-options=-v")
_INSTALL = "pip install 'mps-flash-attn[cuda]' nvidia-cuda-nvrtc brings it"


@dataclass(frozen=True)
class Binary:
    """The machine code of a text.

    Attributes:
        cubin: for one architecture.
        threadgroup_bytes: of each entry point, memory that a launch has to ask for.
        report: the assembler's words: registers, stack and spills of each entry point.
    """

    cubin: bytes
    threadgroup_bytes: dict[str, int]
    report: str

    def dump(self) -> bytes:
        """All of it as bytes."""
        head = json.dumps({"threadgroup_bytes": self.threadgroup_bytes, "report": self.report}).encode()
        return len(head).to_bytes(4, "little") + head + self.cubin

    @staticmethod
    def load(data: bytes) -> Binary:
        """The inverse of `dump`."""
        end = 4 + int.from_bytes(data[:4], "little")
        return Binary(data[end:], **json.loads(data[4:end]))


def compile_cached(text: str, architecture: Architecture, cache: Cache, *, title: str, bounds: int = 0) -> Binary:
    """Compiles a translated text, or finds it on disk.

    Args:
        text: CUDA C++ whose ``#line`` directives point into the Metal text.
        architecture: the GPU's compute capability.
        cache: where machine code is kept.
        title: names the text in errors.
        bounds: the most threads a threadgroup will have, where the compiler is to keep registers free for that many;
            0 leaves it the choice.

    Raises:
        KernelCompileError: with the compiler's own words.
        CompilerNotFoundError: NVRTC cannot be loaded.
    """
    options = [*_OPTIONS, f"-arch={_name(architecture)}"]
    if bounds:
        options.append(f"-DSIMT_BOUNDS=__launch_bounds__({bounds})")
    key = content_key("cubin", text, _headers_digest(), ".".join(map(str, _version())), *options)
    return Binary.load(cache.read(f"{key}.cubin", lambda: _compile(text, options, title).dump()))


def why_no_nvrtc() -> str | None:
    """Why the compiler cannot be used; ``None`` if it can."""
    try:
        _version()
    except CompilerNotFoundError as error:
        return str(error)
    return None


def _compile(text: str, options: list[str], title: str) -> Binary:
    program = _call(nvrtc.nvrtcCreateProgram, text.encode(), b"kernels.cu", 0, [], [])
    try:
        encoded = [option.encode() for option in (*options, f"-I{INCLUDE}")]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        log = _bytes(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        log = log.rstrip("\0").strip()
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise KernelCompileError(f"{title} did not compile:\n{log or status.name}")
        assembly = _bytes(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).decode()
        cubin = _bytes(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Binary(cubin, _threadgroup_bytes(assembly), log)


def _threadgroup_bytes(assembly: str) -> dict[str, int]:
    """What each entry point's variables take, from the remarks that the translation left."""
    parts = re.split(r"\.entry\s+(\w+)", assembly)
    return {
        name: max(map(int, re.findall(rf"// {BYTES_REMARK} (\d+)", body)), default=0)
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def _name(architecture: Architecture) -> str:
    """The architecture as the compiler calls it.

    Raises:
        UnsupportedError: the GPU is too old.
        KernelCompileError: this compiler does not know it.
    """
    if architecture < OLDEST_CAPABILITY:
        raise UnsupportedError(
            f"kernels need compute capability {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]} or newer; the GPU has "
            f"{architecture[0]}.{architecture[1]}"
        )
    known = _call(nvrtc.nvrtcGetSupportedArchs)
    number = architecture[0] * 10 + architecture[1]
    if number not in known:
        version = ".".join(map(str, _version()))
        raise KernelCompileError(
            f"NVRTC {version} compiles for compute capabilities {', '.join(f'{n // 10}.{n % 10}' for n in known)}, not "
            f"for {architecture[0]}.{architecture[1]}; install another version of nvidia-cuda-nvrtc"
        )
    # With instructions that this architecture alone has, such as wgmma.
    return f"sm_{number}{'a' * (number >= 90)}"


@functools.cache
def _version() -> tuple[int, int]:
    try:
        major, minor = _call(nvrtc.nvrtcVersion)
    except RuntimeError as error:  # the library could not be found or loaded
        raise CompilerNotFoundError(f"NVRTC, CUDA's compiler, cannot be loaded ({error}); {_INSTALL}") from error
    return major, minor


@functools.cache
def _headers_digest() -> str:
    paths = sorted(path for path in INCLUDE.rglob("*") if path.is_file())
    return content_key(*(text for path in paths for text in (str(path.relative_to(INCLUDE)), path.read_text())))


def _bytes(size: Any, read: Any, program: Any) -> bytes:
    data = b" " * _call(size, program)
    _call(read, program, data)
    return data


def _call(function: Any, *args: Any) -> Any:
    """Calls a function of NVRTC and returns what it returns beside the status."""
    status, *results = function(*args)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise KernelCompileError(f"{function.__name__} failed: {status.name}")
    return results[0] if len(results) == 1 else tuple(results)
