"""What another process has mapped, read from its own memory: modules, their exported functions and call-frame tables.

From memory, not from files, so that deleted or replaced files and containers make no difference. Layouts: elf(5), and
"DT_GNU_HASH" as glibc reads it (elf/dl-lookup.c).
"""

from __future__ import annotations

import bisect
import os
import re
import struct
from collections.abc import Iterator, Sequence

_PAGE = 4096
_AT_ENTRY = 9
_PT_LOAD, _PT_DYNAMIC, _PT_GNU_EH_FRAME = 1, 2, 0x6474E550
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_STRSZ, _DT_JMPREL = 2, 5, 6, 7, 8, 10, 23
_DT_RELACOUNT, _DT_GNU_HASH = 0x6FFFFFF9, 0x6FFFFEF5
_ADDRESSES = (_DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_JMPREL, _DT_GNU_HASH)
_RELA = struct.Struct("<QQq")
_SYMBOL_RELOCATIONS = (1, 6, 7)  # R_X86_64_64, _GLOB_DAT, _JUMP_SLOT
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) (\S+) (\d+) *(.*)")
_HASH_CHAIN_MAX = 4096


class BadModule(Exception):
    """What is mapped there is not what it seems to be."""


MOST_READ_BYTES = 1 << 28


class Memory:
    """Another process's memory. Reads that fail raise OSError."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes at `address`."""
        data = self.read_some(address, size)
        if len(data) != size:
            raise OSError(14, f"{size} bytes at {address:#x} cannot be read")
        return data

    def read_some(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at `address`."""
        if not 0 <= size <= MOST_READ_BYTES:  # a module's own tables say how large they are
            raise OSError(14, f"{size} bytes at {address:#x} are no table")
        return os.pread(self._fd, size, address) if address < 1 << 63 else b""

    def write(self, address: int, data: bytes) -> None:
        """Writes, over read-only mappings as well."""
        if os.pwrite(self._fd, data, address) != len(data):
            raise OSError(14, f"{len(data)} bytes at {address:#x} cannot be written")

    def word(self, address: int) -> int:
        """The 64-bit word at `address`."""
        return int.from_bytes(self.read(address, 8), "little")

    def close(self) -> None:
        """Gives the descriptor back."""
        os.close(self._fd)


class Module:
    """An ELF file as it is mapped at `start`."""

    def __init__(self, memory: Memory, start: int, path: str) -> None:
        self.path = path
        self._memory = memory
        header = memory.read(start, 64)
        if header[:5] != b"\x7fELF\x02":
            raise BadModule(path)
        offset, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
        table = memory.read(start + offset, size * count)
        segments = [struct.unpack_from("<IIQQQQQQ", table, size * i) for i in range(count)]
        loads = [segment for segment in segments if segment[0] == _PT_LOAD]
        if not loads:
            raise BadModule(path)
        self.bias = start - min(load[3] for load in loads) // _PAGE * _PAGE
        self.code = [(self.bias + load[3], self.bias + load[3] + load[5]) for load in loads if load[1] & 1]
        """Executable address ranges [start, end), as long as the file's own bytes go."""
        self.eh_frame_header = self._address_of(segments, _PT_GNU_EH_FRAME)
        self._dynamic = self._read_dynamic(segments)
        self._addresses: dict[str, int | None] = {}

    def _address_of(self, segments: list[tuple[int, ...]], kind: int) -> int | None:
        return next((self.bias + segment[3] for segment in segments if segment[0] == kind), None)

    def _read_dynamic(self, segments: list[tuple[int, ...]]) -> dict[int, int]:
        found = next((segment for segment in segments if segment[0] == _PT_DYNAMIC), None)
        if found is None:
            return {}
        raw = self._memory.read(self.bias + found[3], found[6] // 16 * 16)
        words = struct.unpack(f"<{len(raw) // 8}Q", raw)
        # The dynamic linker has relocated these in place, except in the vdso and under musl.
        return {
            tag: value + self.bias if tag in _ADDRESSES and value < self.bias else value
            for tag, value in zip(words[::2], words[1::2], strict=True)
        }

    def contains(self, address: int) -> bool:
        """Whether `address` is in its code."""
        return any(start <= address < end for start, end in self.code)

    def export(self, name: str) -> int | None:
        """The address of the function that it exports as `name`, None if it does not."""
        if name not in self._addresses:
            try:
                self._addresses[name] = self._find(name.encode())
            except (OSError, struct.error, ZeroDivisionError):
                self._addresses[name] = None
        return self._addresses[name]

    def _find(self, name: bytes) -> int | None:
        if _DT_GNU_HASH not in self._dynamic:
            return None
        table, read = self._dynamic[_DT_GNU_HASH], self._memory.read
        buckets, first, bloom, _ = struct.unpack("<4I", read(table, 16))
        hashed = 5381
        for byte in name:
            hashed = (hashed * 33 + byte) & 0xFFFFFFFF
        chains = table + 16 + 8 * bloom + 4 * buckets
        (lowest,) = struct.unpack("<I", read(table + 16 + 8 * bloom + 4 * (hashed % buckets), 4))
        if lowest < first:
            return None
        for index in range(lowest, lowest + _HASH_CHAIN_MAX):
            (entry,) = struct.unpack("<I", read(chains + 4 * (index - first), 4))
            if entry | 1 == hashed | 1:
                address = self._symbol(index, name)
                if address is not None:
                    return address
            if entry & 1:
                return None
        return None

    def imports(self, names: Sequence[str]) -> list[tuple[str, int]]:
        """(name, address of the word through which this module calls it), of the functions `names`."""
        try:
            return self._find_imports([name.encode() for name in names])
        except (OSError, struct.error, KeyError, ValueError):
            return []

    def _find_imports(self, names: list[bytes]) -> list[tuple[str, int]]:
        read, dynamic = self._memory.read, self._dynamic
        strings = b"\0" + read(dynamic[_DT_STRTAB], dynamic[_DT_STRSZ])
        if not any(b"\0" + name + b"\0" in strings for name in names):
            return []
        lazy = read(dynamic[_DT_JMPREL], dynamic.get(_DT_PLTRELSZ, 0)) if _DT_JMPREL in dynamic else b""
        relative = dynamic.get(_DT_RELACOUNT, 0) * _RELA.size
        rest = max(dynamic.get(_DT_RELASZ, 0) - relative, 0)
        others = read(dynamic[_DT_RELA] + relative, rest // _RELA.size * _RELA.size) if rest else b""
        found = []
        for offset, info, _ in _RELA.iter_unpack(lazy + others):
            if info & 0xFFFFFFFF in _SYMBOL_RELOCATIONS:
                (at,) = struct.unpack("<I", read(dynamic[_DT_SYMTAB] + 24 * (info >> 32), 4))
                name = strings[at + 1 : strings.index(b"\0", at + 1)]
                if name in names:
                    found.append((name.decode(), self.bias + int(offset)))
        return found

    def _symbol(self, index: int, name: bytes) -> int | None:
        at, info, _, section, value = struct.unpack(
            "<IBBHQ", self._memory.read(self._dynamic[_DT_SYMTAB] + 24 * index, 16)
        )
        if section == 0 or info & 0xF not in (2, 10):  # undefined; STT_FUNC, STT_GNU_IFUNC
            return None
        text = self._memory.read_some(self._dynamic[_DT_STRTAB] + at, len(name) + 1)
        return self.bias + int(value) if text == name + b"\0" else None


class AddressMap:
    """The process's mappings at one moment, and the modules among them."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.modules: list[Module] = []
        self.writable: list[tuple[int, int]] = []
        with open(f"/proc/{memory.pid}/maps", errors="surrogateescape") as file:
            lines = [match.groups() for match in map(_LINE.match, file.read().splitlines()) if match]
        for start, end, rights, offset, _, inode, path in lines:
            if rights.startswith("rw"):
                self.writable.append((int(start, 16), int(end, 16)))
            if (inode != "0" or path == "[vdso]") and int(offset, 16) == 0 and rights[0] == "r":
                self._add(int(start, 16), path)
        ranges = sorted((start, end, module) for module in self.modules for start, end in module.code)
        self._starts = [start for start, _, _ in ranges]
        self._ranges = ranges
        self.program = self.find(_entry_point(memory.pid))
        """The executable."""

    def _add(self, start: int, path: str) -> None:
        try:
            self.modules.append(Module(self._memory, start, path))
        except (OSError, BadModule, struct.error):
            pass  # a data file, or one that went away

    def find(self, address: int) -> Module | None:
        """The module whose code `address` is in."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0 or address >= self._ranges[at][1]:
            return None
        return self._ranges[at][2]

    def stack_room(self, sp: int) -> int:
        """The end of the writable mapping that `sp` is in; 0 if in none."""
        return next((end for start, end in self.writable if start <= sp < end), 0)

    def gaps_in_code(self, size: int) -> Iterator[int]:
        """Addresses of executable memory that belongs to no function: behind a module's code, up to the page's end."""
        for module in self.modules:
            for _, end in module.code:
                at = (end + 63) // 64 * 64
                if module.path.startswith("/") and at % _PAGE > 0 and _PAGE - at % _PAGE >= size:
                    yield at


def _entry_point(pid: int) -> int:
    with open(f"/proc/{pid}/auxv", "rb") as file:
        data = file.read()
    words = struct.unpack(f"{len(data) // 8}Q", data)
    return int(dict(zip(words[::2], words[1::2], strict=True)).get(_AT_ENTRY, 0))
