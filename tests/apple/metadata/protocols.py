"""Reads Objective-C protocols, with the types of their methods, out of a compiled library for macOS.

pyobjc's wheel has Metal's protocols compiled in, as Apple's own compiler encoded them from Apple's headers. Layouts are
those of ``mach-o/loader.h`` and of the Objective-C runtime's ``protocol_t`` and ``method_list_t``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

__all__ = ["read"]

_FAT_MAGIC, _MACHO_64_MAGIC = 0xCAFEBABE, 0xFEEDFACF
#: The build in which pointers are stored as they are; that for arm64 chains them for the loader.
_X86_64 = 0x01000007
_SEGMENT_64 = 0x19
#: Fields of ``protocol_t``: those of required and of optional methods of instances.
_INSTANCE_METHODS = (3, 5)


@dataclass(frozen=True)
class _Section:
    address: int
    size: int
    offset: int


class _Image:
    """The x86-64 part of a universal library, its memory addressed as once it is loaded."""

    def __init__(self, data: bytes) -> None:
        magic, count = struct.unpack_from(">II", data)
        if magic != _FAT_MAGIC:
            raise ValueError("this is no universal library")
        parts = [struct.unpack_from(">IIIII", data, 8 + 20 * i) for i in range(count)]
        start, size = next((offset, size) for kind, _, offset, size, _ in parts if kind == _X86_64)
        self._data = data[start : start + size]
        self.sections = dict(self._read_sections())

    def _read_sections(self) -> list[tuple[str, _Section]]:
        magic, _, _, _, commands = struct.unpack_from("<IIIII", self._data)
        if magic != _MACHO_64_MAGIC:
            raise ValueError("this is no 64-bit Mach-O file")
        found, place = [], 32
        for _ in range(commands):
            command, size = struct.unpack_from("<II", self._data, place)
            if command == _SEGMENT_64:
                (sections,) = struct.unpack_from("<I", self._data, place + 64)
                for i in range(sections):
                    name, _, *numbers = struct.unpack_from("<16s16sQQI", self._data, place + 72 + 80 * i)
                    found.append((name.rstrip(b"\0").decode(), _Section(*numbers)))
            place += size
        return found

    def offset(self, address: int) -> int:
        for section in self.sections.values():
            if section.address <= address < section.address + section.size:
                return section.offset + address - section.address
        raise ValueError(f"address {address:#x} is in no section")

    def numbers(self, form: str, address: int) -> tuple[int, ...]:
        return struct.unpack_from(form, self._data, self.offset(address))

    def text(self, address: int) -> str:
        start = self.offset(address)
        return self._data[start : self._data.index(b"\0", start)].decode()


def read(library: Path) -> dict[str, dict[str, str]]:
    """The type encoding of each method, by protocol and selector."""
    image = _Image(library.read_bytes())
    listed = image.sections["__objc_protolist"]
    found: dict[str, dict[str, str]] = {}
    for address in image.numbers(f"<{listed.size // 8}Q", listed.address):
        fields = image.numbers("<8Q", address)
        methods = found.setdefault(image.text(fields[1]), {})
        for field in _INSTANCE_METHODS:
            if fields[field]:
                methods.update(_methods(image, fields[field]))
    return found


def _methods(image: _Image, address: int) -> dict[str, str]:
    size, count = image.numbers("<II", address)
    if size != 24:
        raise ValueError(f"a list of methods has entries of {size} bytes, not 24: name, types, implementation")
    entries = (image.numbers("<QQ", address + 8 + size * i) for i in range(count))
    return {image.text(name): image.text(types) for name, types in entries}
