"""Turns Metal text into C++, for whichever runtime compiles that: the simulator, or CUDA's compiler."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path

from ..cache import Cache, content_key
from .host_compiler import Compiler
from .kernel_signature import BufferInfo, KernelInfo
from .target import Target
from .translate import Translation, translate

__all__ = ["cached_translation"]


@functools.cache
def _digest() -> str:
    """A hash of the translator itself."""
    return content_key(*(path.read_text() for path in sorted(Path(__file__).parent.glob("*.py"))))


def cached_translation(source: str, target: Target, compiler: Compiler, cache: Cache) -> Translation:
    """Translates Metal text, or finds the translation on disk: the C preprocessor takes longer than that.

    Raises:
        KernelCompileError: the text is no valid Metal.
        CacheError: the folder of the cache cannot be used.
    """

    def make() -> bytes:
        return json.dumps(asdict(translate(source, target=target, compiler=compiler))).encode()

    key = content_key("translation", source, target.name, target.digest, _digest(), compiler.version)
    stored = json.loads(cache.read(f"{key}.json", make))
    kernels = tuple(
        KernelInfo(**{**kernel, "buffers": tuple(BufferInfo(**buffer) for buffer in kernel["buffers"])})
        for kernel in stored["kernels"]
    )
    return Translation(**{**stored, "kernels": kernels})
