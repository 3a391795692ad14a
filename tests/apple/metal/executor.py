"""Lets the stand-in for Metal compile and run kernels on the simulator."""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import re
from pathlib import Path
from typing import Any

from mps_flash_attn import _C
from mps_flash_attn.runtime import simulator
from mps_flash_attn.runtime.simulator import library as simulator_library
from mps_flash_attn.runtime.simulator.compiler import Variant

__all__ = ["install"]

_TRANSLATE = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64)
_BUILD = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint64)
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    ctypes.c_int64,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_uint64),
    ctypes.c_uint32,
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.POINTER(ctypes.c_uint32),
    ctypes.c_void_p,
    ctypes.c_uint64,
)

_ALIGNMENTS = {"bool": 1, "char": 1, "uchar": 1, "half": 2, "bfloat": 2, "short": 2, "ushort": 2}
_ALIGNMENTS |= {"float": 4, "int": 4, "uint": 4, "long": 8, "ulong": 8}
#: What an offset must be a multiple of where the type is a struct or the like.
_UNKNOWN_ALIGNMENT = {"device": 1, "constant": 4}


class _Executor(ctypes.Structure):
    _fields_ = (("translate", _TRANSLATE), ("build", _BUILD), ("launch", _LAUNCH))


class _Simulator:
    """The functions of ``StandinExecutor`` in standin.h."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._libraries: dict[int, simulator.ShaderLibrary] = {}
        self._kernels: dict[int, tuple[simulator.ShaderLibrary, _C.Kernel]] = {}

    def translate(self, source: bytes, reply: int, capacity: int) -> int:
        try:
            library = simulator.compile_shader(source.decode())
            _answer(json.dumps(_describe(library)), reply, capacity)
        except Exception as error:
            _answer(str(error), reply, capacity)
            return 0
        number = next(self._numbers)
        self._libraries[number] = library
        return number

    def build(self, library: int, function: bytes, reply: int, capacity: int) -> int:
        try:
            built = _build(self._libraries[library], function.decode())
        except Exception as error:
            _answer(str(error), reply, capacity)
            return 0
        number = next(self._numbers)
        self._kernels[number] = self._libraries[library], built
        return number

    def launch(
        self,
        kernel: int,
        addresses: Any,
        lengths: Any,
        count: int,
        threads: Any,
        group_size: Any,
        reply: int,
        capacity: int,
    ) -> int:
        library, built = self._kernels[kernel]
        try:
            built.launch(
                tuple(address or 0 for address in addresses[:count]),
                tuple(threads[:3]),
                tuple(group_size[:3]),
                library._threadgroup_bytes,
                simulator_library._os_threads(),
            )
        except Exception as error:
            _answer(str(error), reply, capacity)
            return 1
        return 0


@functools.lru_cache(maxsize=1024)
def _build(library: simulator.ShaderLibrary, function: str) -> _C.Kernel:
    return getattr(library, function)._build(Variant.FAST)


def _describe(library: simulator.ShaderLibrary) -> list[dict[str, Any]]:
    return [
        {
            "name": info.name,
            "buffers": [
                {"index": buffer.index, "bytes": _alignment(library, buffer.type, buffer.address_space)}
                for buffer in info.buffers
            ],
        }
        for info in library._infos.values()
    ]


def _alignment(library: simulator.ShaderLibrary, type_: str, address_space: str) -> int:
    """What the offset of a buffer of that type must be a multiple of, in bytes."""
    name = re.sub(r"\bconst\b|\bvolatile\b|[*&\s]", "", type_)
    while alias := re.search(rf"\busing\s+{re.escape(name)}\s*=\s*(\w+)\s*;", library._translation.text):
        name = alias[1]
    vector = re.fullmatch(r"([a-z]+)([234]?)", name)
    if vector is None or vector[1] not in _ALIGNMENTS:
        return _UNKNOWN_ALIGNMENT[address_space]
    return _ALIGNMENTS[vector[1]] * {"": 1, "2": 2, "3": 4, "4": 4}[vector[2]]


def _answer(text: str, reply: int, capacity: int) -> None:
    data = text.encode()[: capacity - 1] + b"\0"
    ctypes.memmove(reply, data, len(data))


@functools.cache
def _table() -> _Executor:
    """Made once, because its functions must outlive every call."""
    simulated = _Simulator()
    return _Executor(_TRANSLATE(simulated.translate), _BUILD(simulated.build), _LAUNCH(simulated.launch))


def install(path: Path, *, simulate: bool = True) -> None:
    """Gives the stand-in in the library ``path`` the simulator, or takes it away: then kernels never run."""
    metal = ctypes.CDLL(str(path))
    metal.standin_set_executor.argtypes = (ctypes.POINTER(_Executor),)
    metal.standin_set_executor.restype = None
    metal.standin_set_executor(ctypes.byref(_table()) if simulate else None)
