"""What an ELF file says of itself: where it loads, build-id, its debug file's name, and its functions' exact ranges.

Reads the headers and symbol tables only (no DWARF), with bounded `pread`s, so a file that is damaged, hostile or
truncated while it is read raises ElfError and does nothing worse. Layouts: elf(5); `.gnu_debuglink` and build-id: GDB
manual, "Debugging Information in Separate Files"; `.gnu_debugdata`: the same, "MiniDebugInfo".
"""

from __future__ import annotations

import functools
import lzma
import os
import stat
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PT_LOAD = 1
PT_NOTE = 4
SHT_SYMTAB = 2
SHT_NOTE = 7
SHT_NOBITS = 8
SHT_DYNSYM = 11
SHN_UNDEF = 0
SHN_XINDEX = 0xFFFF
STT_OBJECT = 1
STT_FUNC = 2
STT_GNU_IFUNC = 10
STB_LOCAL = 0
STB_GLOBAL = 1
STB_WEAK = 2
NT_GNU_BUILD_ID = 3

_MAX_DEBUGDATA_BYTES = 1 << 28
_MAX_ALIASES = 64

# fmt: off
_HEADER = ["type:2", "machine:2", "version:4", "entry:w", "phoff:w", "shoff:w", "flags:4", "ehsize:2",
           "phentsize:2", "phnum:2", "shentsize:2", "shnum:2", "shstrndx:2"]
_SECTION = ["name:4", "type:4", "flags:w", "addr:w", "offset:w", "size:w", "link:4", "info:4",
            "addralign:w", "entsize:w"]
_SEGMENT = {
    32: ["type:4", "offset:w", "vaddr:w", "paddr:w", "filesz:w", "memsz:w", "flags:4", "align:w"],
    64: ["type:4", "flags:4", "offset:w", "vaddr:w", "paddr:w", "filesz:w", "memsz:w", "align:w"],
}
_SYMBOL = {
    32: ["name:4", "value:w", "size:w", "info:1", "other:1", "shndx:2"],
    64: ["name:4", "info:1", "other:1", "shndx:2", "value:w", "size:w"],
}
# fmt: on


class ElfError(Exception):
    """The file is no ELF file, or a damaged one."""


def open_elf(path: str) -> ElfFile:
    """The ELF file at `path`. Raises OSError, ValueError (no path), and ElfError where there is something else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block us
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ElfError("no regular file")
    return ElfFile(descriptor)


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function symbol: its (mangled) name without version, and its address in the file's own numbering."""

    name: str
    start: int


FUNCTIONS = (STT_FUNC, STT_GNU_IFUNC)
OBJECTS = (STT_OBJECT,)


class SymbolTable:
    """The functions, or the variables, that one symbol table defines, for lookups by address."""

    def __init__(self, symbols: NDArray[np.void], strings: bytes, kinds: Sequence[int] = FUNCTIONS) -> None:
        wanted = np.isin(symbols["info"] & 0xF, kinds)
        symbols = symbols[wanted & (symbols["shndx"] != SHN_UNDEF)]
        symbols = symbols[np.argsort(symbols["value"], kind="stable")]
        self._starts: NDArray[np.uint64] = symbols["value"].astype(np.uint64)
        self._ends = self._starts + symbols["size"].astype(np.uint64)
        self._ends[self._ends < self._starts] = 0  # a size that wraps around is damage
        self._reach = np.maximum.accumulate(self._ends)
        self._names = symbols["name"]
        self._bindings = symbols["info"] >> 4
        self._strings = strings

    def find(self, address: int) -> Symbol | None:
        """The function with start <= `address` < start + size, or None; the innermost one where ranges nest.

        Of several names for it, the one a person would use: few leading underscores, global before weak before local.
        """
        index = int(np.searchsorted(self._starts, np.uint64(address), side="right")) - 1
        names: list[tuple[int, int, str]] = []
        start = -1
        for i in range(index, max(index - _MAX_ALIASES * 16, -1), -1):
            if self._reach[i] <= address or (names and self._starts[i] != start):
                break
            if self._ends[i] > address and len(names) < _MAX_ALIASES:
                name = self._name(int(self._names[i]))
                start = int(self._starts[i])
                binding = (STB_GLOBAL, STB_WEAK, STB_LOCAL).index(min(int(self._bindings[i]), STB_WEAK))
                names.append((len(name) - len(name.lstrip("_")), binding, name))
        return Symbol(min(names)[2], start) if names else None

    def addresses(self, names: Sequence[str]) -> dict[str, int]:
        """Where the functions called exactly `names` start; those that are not here are left out."""
        found = {}
        for name in names:
            wanted, at = name.encode() + b"\0", -1
            while (at := self._strings.find(wanted, at + 1)) >= 0:
                rows = np.flatnonzero(self._names == at)  # an offset into the middle of another name is none of ours
                if rows.size:
                    found[name] = int(self._starts[rows[0]])
                    break
        return found

    def _name(self, offset: int) -> str:
        end = self._strings.find(b"\0", offset)
        return self._strings[offset:end].decode("utf-8", "replace").split("@", 1)[0]


class ElfFile:
    """An open ELF file. Takes over `descriptor`, an open regular file, and closes it when it is collected.

    Raises:
        ElfError: it is no ELF file, or its headers make no sense.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._bytes = os.fstat(descriptor).st_size
        ident = self._read(0, 16)
        if ident[:4] != b"\x7fELF" or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise ElfError("no ELF file")
        self._bits = 32 * ident[4]
        self._order = "<>"[ident[5] - 1]
        header = self._array(_HEADER, 16, 1)[0]
        self._segments = self._array(_SEGMENT[self._bits], int(header["phoff"]), int(header["phnum"]))
        self._sections, self._section_names = self._read_sections(header)

    @property
    def first_load(self) -> int:
        """Address of the first PT_LOAD segment in the file: 0 for most libraries, 0x400000 for a non-PIE program."""
        loads = self._loads()
        return int(loads["vaddr"][0]) if len(loads) else 0

    def memory_range(self, page_bytes: int) -> tuple[int, int, int]:
        """(lowest page's address, end of what is mapped from the file, end of it all), in the file's own numbering."""
        loads = self._loads()
        if not len(loads):
            raise ElfError("nothing to load")
        low = int(loads["vaddr"].min()) // page_bytes * page_bytes
        return low, int((loads["vaddr"] + loads["filesz"]).max()), int((loads["vaddr"] + loads["memsz"]).max())

    @functools.cached_property
    def build_id(self) -> bytes | None:
        """The linker's NT_GNU_BUILD_ID note."""
        notes = [(int(s["offset"]), int(s["size"])) for s in self._sections if s["type"] == SHT_NOTE]
        notes += [(int(s["offset"]), int(s["filesz"])) for s in self._segments if s["type"] == PT_NOTE]
        for offset, size in notes:
            build_id = self._build_id_in(self._read(offset, size))
            if build_id:
                return build_id
        return None

    @property
    def debuglink(self) -> tuple[str, int] | None:
        """(file name, CRC-32 of the file) from `.gnu_debuglink`."""
        data = self._section(".gnu_debuglink")
        if data is None or len(data) < 8:
            return None
        crc = int(np.frombuffer(data[-4:], self._order + "u4")[0])
        return os.fsdecode(data.split(b"\0", 1)[0]), crc

    @property
    def has_dwarf(self) -> bool:
        """Whether the file itself carries `.debug_info`, compressed or not."""
        return any(name in self._section_names for name in (".debug_info", ".zdebug_info"))

    def functions(self) -> list[SymbolTable]:
        """Tables to search one after another: `.symtab`, else what `.gnu_debugdata` and `.dynsym` have."""
        full = self._tables(SHT_SYMTAB)
        return full or self._mini_debug_info() + self._tables(SHT_DYNSYM)

    def variables(self) -> list[SymbolTable]:
        """The same of the global and static variables; `.gnu_debugdata` has none."""
        return self._tables(SHT_SYMTAB, OBJECTS) or self._tables(SHT_DYNSYM, OBJECTS)

    def _mini_debug_info(self) -> list[SymbolTable]:
        """Fedora's and RHEL's replacement for a stripped `.symtab`: a whole ELF file, compressed, in a section."""
        packed = self._section(".gnu_debugdata")
        if packed is None:
            return []
        try:
            data = lzma.LZMADecompressor().decompress(packed, _MAX_DEBUGDATA_BYTES)
        except lzma.LZMAError as error:
            raise ElfError(f"damaged .gnu_debugdata: {error}") from error
        descriptor = os.memfd_create("gnu_debugdata")
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        return ElfFile(descriptor)._tables(SHT_SYMTAB)

    def _tables(self, kind: int, symbol_kinds: Sequence[int] = FUNCTIONS) -> list[SymbolTable]:
        tables = []
        for section in self._sections[self._sections["type"] == kind]:
            entry_bytes = self._layout(_SYMBOL[self._bits]).itemsize
            count = int(section["size"]) // entry_bytes
            symbols = self._array(_SYMBOL[self._bits], int(section["offset"]), count)
            if int(section["link"]) >= len(self._sections):
                raise ElfError("symbol table without strings")
            strings = self._sections[int(section["link"])]
            texts = self._read(int(strings["offset"]), int(strings["size"]))
            tables.append(SymbolTable(symbols, texts, symbol_kinds))
        return tables

    def _loads(self) -> NDArray[np.void]:
        loads: NDArray[np.void] = self._segments[self._segments["type"] == PT_LOAD]
        return loads

    def _read_sections(self, header: np.void) -> tuple[NDArray[np.void], dict[str, int]]:
        offset, count, names_index = int(header["shoff"]), int(header["shnum"]), int(header["shstrndx"])
        if offset == 0:
            return self._array(_SECTION, 0, 0), {}
        if count == 0 or names_index == SHN_XINDEX:  # more than 65279 sections: the first one tells
            first = self._array(_SECTION, offset, 1)[0]
            count, names_index = count or int(first["size"]), int(first["link"]) or names_index
        sections = self._array(_SECTION, offset, count)
        if names_index >= count:
            raise ElfError("no section names")
        strings = self._read(int(sections[names_index]["offset"]), int(sections[names_index]["size"]))
        ends = (strings.find(b"\0", int(start)) for start in sections["name"])
        names = (strings[int(start) : end] for start, end in zip(sections["name"], ends, strict=True))
        return sections, {name.decode("ascii", "replace"): index for index, name in enumerate(names)}

    def _section(self, name: str) -> bytes | None:
        index = self._section_names.get(name)
        if index is None or self._sections[index]["type"] == SHT_NOBITS:
            return None
        return self._read(int(self._sections[index]["offset"]), int(self._sections[index]["size"]))

    def _build_id_in(self, notes: bytes) -> bytes | None:
        word = np.dtype(self._order + "u4")
        while len(notes) >= 12:
            name_bytes, text_bytes, kind = (int(n) for n in np.frombuffer(notes, word, 3))
            text_at = 12 + (name_bytes + 3) // 4 * 4
            if kind == NT_GNU_BUILD_ID and notes[12 : 12 + name_bytes] == b"GNU\0":
                return notes[text_at : text_at + text_bytes]
            notes = notes[text_at + (text_bytes + 3) // 4 * 4 :]
        return None

    def _layout(self, fields: list[str]) -> np.dtype[np.void]:
        pairs = (field.split(":") for field in fields)
        return np.dtype([(name, f"{self._order}u{self._bits // 8 if size == 'w' else size}") for name, size in pairs])

    def _array(self, fields: list[str], offset: int, count: int) -> NDArray[np.void]:
        layout = self._layout(fields)
        return np.frombuffer(self._read(offset, count * layout.itemsize), layout)

    def _read(self, offset: int, size: int) -> bytes:
        if offset + size > self._bytes:
            raise ElfError("truncated")
        pieces = []
        while size:  # one pread returns at most 2 GiB
            piece = os.pread(self.descriptor, size, offset)
            if not piece:
                raise ElfError("truncated")
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return b"".join(pieces)
