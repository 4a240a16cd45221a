"""Return addresses -> functions, files and lines, on the host, from the ELF files and their debug files alone.

A name is given only where it is certain: the address lies inside a function symbol's own range, or debug information
says so. Anything else keeps its module and offset, and no name. Files are opened when the first address in them is
asked for, never in the target, and nothing here needs the target to be alive.

Every address is a return address, that of frame 0 too: the call is the byte before it, so `address - 1` is what is
looked up, while the address itself and offsets of it are reported.
"""

from __future__ import annotations

import bisect
import functools
import os
import re
import threading
import weakref
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from symbolic.debuginfo import Archive
from symbolic.exceptions import SymbolicError

from frida_rtetrack.stream.events import MODULE_LOADED
from frida_rtetrack.symbols.demangle import demangle
from frida_rtetrack.symbols.elf import ElfError, ElfFile, Symbol, SymbolTable, open_elf
from frida_rtetrack.symbols.sources import Sources

DEBUG_DIRECTORIES = ("/usr/lib/debug",)
ADDRESSES_KEPT = 1 << 18
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_CLONE_SUFFIXES = re.compile(r"(?:\.(?:cold|constprop|isra|part|lto_priv|localalias|llvm)(?:\.[0-9A-F]+)*)+\Z")
_CRC_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Module:
    """A file (or `linux-vdso.so.1`, a memfd, ...) in a process's memory; fields as in `struct module_record`.

    It holds for stacks of `process` with loaded_epoch <= epoch < unloaded_epoch. `base` is the lowest mapped address,
    `size` its extent in bytes. `build_id`, if known, is the one in memory: a file that has another gives no names.
    """

    path: str
    base: int
    size: int
    process: int
    loaded_epoch: int = 0
    unloaded_epoch: int = MODULE_LOADED
    build_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One function of a backtrace; one return address gives several where functions were inlined. None: not known.

    `module` is the file's base name; `offset` is `address` minus the module's base (for a PIE or shared object the
    address that addr2line and objdump use, plus one call). `function` is demangled, named as gdb's `bt` names it.
    `symbol` is the linker symbol that holds the code, demangled, with the compiler's suffixes (`parse.part.0`), and
    `function_offset` counts from its start; both are None for an inlined function, which has neither.
    """

    address: int
    module: str | None
    offset: int | None
    function: str | None
    function_offset: int | None
    file: str | None
    line: int | None
    inlined: bool
    module_path: str | None = None
    symbol: str | None = None


class ModuleMap:
    """Which module was at an address of a process at a module epoch. One thread may write while others read."""

    def __init__(self) -> None:
        self._processes: dict[int, tuple[list[tuple[int, int]], list[Module], int]] = {}

    def add(self, module: Module) -> None:
        """Adds a module, or replaces what is known of it: the one of that process, base and loaded_epoch."""
        keys, modules, longest = self._processes.get(module.process, ([], [], 0))
        key = (module.base, module.loaded_epoch)
        index = bisect.bisect_left(keys, key)
        after = index + (index < len(keys) and keys[index] == key)
        if modules[index:after] == [module]:
            return
        self._processes[module.process] = (
            [*keys[:index], key, *keys[after:]],
            [*modules[:index], module, *modules[after:]],
            max(longest, module.size),
        )

    def add_all(self, modules: Iterable[Module]) -> None:
        """Adds these modules, as `add` does each."""
        new: dict[int, dict[tuple[int, int], Module]] = {}
        for module in modules:
            new.setdefault(module.process, {})[module.base, module.loaded_epoch] = module
        for process, added in new.items():
            keys, known, longest = self._processes.get(process, ([], [], 0))
            merged = dict(sorted((dict(zip(keys, known, strict=True)) | added).items(), key=lambda item: item[0]))
            longest = max(longest, *(module.size for module in added.values()))
            self._processes[process] = (list(merged), list(merged.values()), longest)

    def unload(self, process: int, base: int, epoch: int) -> None:
        """From `epoch` on, the newest module at `base` of that process is gone. Unknown ones are ignored."""
        keys, modules, _ = self._processes.get(process, ([], [], 0))
        index = bisect.bisect_right(keys, (base, epoch)) - 1
        if index >= 0 and modules[index].base == base:
            self.add(replace(modules[index], unloaded_epoch=epoch))

    def find(self, process: int, epoch: int, address: int) -> Module | None:
        """The module whose range [base, base + size) held `address` at `epoch`, or None."""
        keys, modules, longest = self._processes.get(process, ([], [], 0))
        for index in range(bisect.bisect_left(keys, (address + 1, 0)) - 1, -1, -1):
            module = modules[index]
            if module.base + longest <= address:
                return None
            if address < module.base + module.size and module.loaded_epoch <= epoch < module.unloaded_epoch:
                return module
        return None


class Symbolizer:
    """Names the return addresses of recorded stacks.

    `root` is the directory under which the target sees its files (`/proc/PID/root` for one in a container); it is held
    open, so that it serves after the target's end too. What is not there is looked for on the host itself.
    `debug_directories` are searched for detached debug information, under `root` and on the host. `sources`: where else
    files are looked for.
    """

    def __init__(
        self,
        modules: ModuleMap,
        root: str = "/",
        debug_directories: Sequence[str] = DEBUG_DIRECTORIES,
        sources: Sources | None = None,
    ) -> None:
        self._modules = modules
        self._sources = sources or Sources()
        self._files = _Files(root)
        self._debug_directories = tuple(debug_directories)
        self._lock = threading.Lock()
        self._names: dict[tuple[int, ...], _ModuleNames | None] = {}
        self._names_of: dict[Module, _ModuleNames | None] = {}
        self._frames: dict[tuple[Module, int], tuple[Frame, ...]] = {}

    def resolve(self, process: int, epoch: int, addresses: Sequence[int]) -> list[Frame]:
        """Frames of a stack, innermost first; an address gives its inlined functions first, then the one that holds it.

        Args:
            process: index of the process, `epoch`: its module epoch, both as recorded with the stack.
            addresses: return addresses, innermost first.
        """
        frames: list[Frame] = []
        for address in addresses:
            module = self._modules.find(process, epoch, address - 1)
            if module is None:
                frames.append(Frame(address, None, None, None, None, None, None, False))
                continue
            known = self._frames.get((module, address))
            if known is None:
                with self._lock:
                    if len(self._frames) >= ADDRESSES_KEPT:
                        self._frames.clear()
                    known = self._frames[module, address] = self._resolve_in(module, address)
            frames.extend(known)
        return frames

    def variable(self, module: Module, address: int) -> str | None:
        """The variable of `module` that `address` lies in, and how far into it that is: `flow_table`, `flow_table+8`."""
        with self._lock:
            names = self._names_in(module)
        return None if names is None else names.variable(address - module.base)

    def frames_in(self, module: Module, address: int) -> tuple[Frame, ...]:
        """The frames of one return address in `module`, innermost first."""
        with self._lock:
            return self._resolve_in(module, address)

    def _resolve_in(self, module: Module, address: int) -> tuple[Frame, ...]:
        nameless = Frame(
            address, os.path.basename(module.path), address - module.base, None, None, None, None, False, module.path
        )
        names = self._names_in(module)
        return (nameless,) if names is None else names.frames(nameless)

    def _names_in(self, module: Module) -> _ModuleNames | None:
        if module not in self._names_of:
            self._names_of[module] = self._open(module)
        return self._names_of[module]

    def _open(self, module: Module) -> _ModuleNames | None:
        """The names in the module's file, or None: it has no file, or the file is not what was loaded."""
        elf = self._local(module)
        try:
            debug = None if elf is None else self._debug_file(elf, module.path)
            if elf is None or not any(file.has_dwarf for file in (elf, debug) if file is not None):
                elf, debug = self._from_sources(module, elf, debug)
            if elf is None:
                return None
            status = os.fstat(elf.descriptor)
            identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if identity not in self._names:
                self._names[identity] = None  # where its tables are damaged
                self._names[identity] = _ModuleNames(elf, debug)
            return self._names[identity]
        except ElfError:
            return None

    def _local(self, module: Module) -> ElfFile | None:
        """The file at the module's own path, if that is what was loaded."""
        if not module.path.startswith("/") or module.path.endswith(" (deleted)"):
            return None
        elf = self._files.elf(module.path)
        try:
            if elf is None or _is_what_was_loaded(elf, module):
                return elf
        except ElfError:
            return None
        self._sources.note(f"{module.path} is not the file that ran: another build-id or size. It is not used.")
        return None

    def _from_sources(
        self, module: Module, elf: ElfFile | None, debug: ElfFile | None
    ) -> tuple[ElfFile | None, ElfFile | None]:
        """The file and its debug file with what the sources have besides `elf` and `debug`."""
        if not os.path.basename(module.path):
            return elf, debug
        files = list(self._sources.files(module.build_id, module.path))
        if elf is None and files:
            elf = files.pop()
        if debug is None and files:
            debug = files[0]
        return (elf or self._sources.executable(module.build_id)), debug

    def functions_in_debug_file(self, module: Module, names: Sequence[str]) -> dict[str, int]:
        """Offsets from the module's base of the functions `names` that its debug file has; {} without a debug file."""
        elf = self._files.elf(module.path)
        debug = None if elf is None else self._debug_file(elf, module.path)
        if elf is None or debug is None:
            return {}
        found: dict[str, int] = {}
        for table in debug.functions():
            for name, address in table.addresses(names).items():
                found.setdefault(name, address - elf.first_load)
        return found

    def _debug_file(self, elf: ElfFile, path: str) -> ElfFile | None:
        """The detached debug file: by build-id, then by debuglink, where GDB looks; it must prove that it fits."""
        if elf.build_id:
            name = f"{elf.build_id[:1].hex()}/{elf.build_id[1:].hex()}.debug"
            for directory in self._debug_directories:
                debug = self._files.elf(f"{directory}/.build-id/{name}")
                if debug is not None and debug.build_id == elf.build_id:
                    return debug
        if elf.debuglink:
            (name, crc), home = elf.debuglink, os.path.dirname(path)
            for directory in (home, f"{home}/.debug", *(above + home for above in self._debug_directories)):
                debug = self._files.elf(f"{directory}/{os.path.basename(name)}")
                if debug is not None and _crc32(debug.descriptor) == crc:
                    return debug
        return None


class _Files:
    """Opens files as the target sees them, else as the host does."""

    def __init__(self, root: str) -> None:
        self._root = ""
        try:
            descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return  # the process is gone, or not ours to look into
        weakref.finalize(self, os.close, descriptor)
        self._root = f"/proc/self/fd/{descriptor}"

    def elf(self, path: str) -> ElfFile | None:
        """The ELF file at `path`, or None if there is none that can be read."""
        for candidate in (self._root + path, path):
            try:
                return open_elf(candidate)
            except ElfError:
                return None
            except (OSError, ValueError):
                continue
        return None


class _ModuleNames:
    """Lookups in one ELF file and its debug file. Raises ElfError if the tables are damaged."""

    def __init__(self, elf: ElfFile, debug: ElfFile | None) -> None:
        self._low, _, _ = elf.memory_range(PAGE_BYTES)
        self._files = [file for file in (debug, elf) if file is not None]
        self._tables = [table for file in self._files for table in file.functions()]
        dwarf = debug if debug is not None and debug.has_dwarf else elf
        self._dwarf: Any = _symcache(dwarf) if dwarf.has_dwarf else None
        self._dwarf_low = dwarf.first_load

    def frames(self, nameless: Frame) -> tuple[Frame, ...]:
        """`nameless`, a frame with all but its names, as one frame or more, innermost first."""
        assert nameless.offset is not None
        address = nameless.offset + self._low
        holder = nameless
        *inlined, physical = self._locations(address - 1) or [None]
        function = self._find(address - 1)
        if function is not None:
            holder = replace(
                nameless,
                function=demangle(function.name if physical is None else _CLONE_SUFFIXES.sub("", function.name)),
                symbol=demangle(function.name),
                function_offset=address - function.start,
            )
        elif physical is not None and physical.lang != "unknown" and physical.symbol:
            holder = replace(nameless, function=demangle(_CLONE_SUFFIXES.sub("", physical.symbol)))
        if physical is not None:
            holder = replace(holder, file=physical.full_path, line=physical.line or None)
        frames = [
            replace(
                nameless,
                function=demangle(_CLONE_SUFFIXES.sub("", place.symbol)) or None,
                file=place.full_path,
                line=place.line or None,
                inlined=True,
            )
            for place in inlined
        ]
        return (*frames, holder)

    @functools.cached_property
    def _variables(self) -> list[SymbolTable]:
        return [table for file in self._files for table in file.variables()]

    def variable(self, offset: int) -> str | None:
        """The variable that holds what lies `offset` bytes from the module's base, and how far into it that is."""
        address = offset + self._low
        for table in self._variables:
            found = table.find(address)
            if found is not None:
                inside = address - found.start
                return demangle(found.name) + (f"+{inside}" if inside else "")
        return None

    def _find(self, address: int) -> Symbol | None:
        for table in self._tables:
            function = table.find(address)
            if function is not None:
                return function
        return None

    def _locations(self, address: int) -> list[Any]:
        """symbolic's SourceLocations that rest on debug information, innermost first.

        It also answers from the symbol table alone (then it has no path and knows no language), and stretches symbols
        without a size up to the next one; names from there come by `_find` or not at all.
        """
        if self._dwarf is None or address < self._dwarf_low:
            return []
        places = self._dwarf.lookup(address - self._dwarf_low)
        return list(places) if places and (places[-1].full_path or places[-1].lang != "unknown") else []


def _symcache(elf: ElfFile) -> Any:
    """symbolic's index of the file's DWARF, or None if it cannot read it. Takes about 0.2 s for libc's."""
    try:
        for part in Archive.open(f"/proc/self/fd/{elf.descriptor}").iter_objects():
            return part.make_symcache()
    except SymbolicError:
        pass
    return None


def _is_what_was_loaded(elf: ElfFile, module: Module) -> bool:
    """False if the file was replaced since: another build-id, or another extent in memory than the module's.

    The extent is compared in pages; a `size` with or without the zero-filled end of the last segment is right.
    """
    if module.build_id is not None and module.build_id != elf.build_id:
        return False
    low, file_end, memory_end = elf.memory_range(PAGE_BYTES)
    return _pages(file_end - low) <= _pages(module.size) <= _pages(memory_end - low)


def _pages(size: int) -> int:
    return -(-size // PAGE_BYTES)


def _crc32(descriptor: int) -> int:
    """CRC-32 of a whole file, as `.gnu_debuglink` has it (GDB manual, "Debugging Information in Separate Files")."""
    crc = offset = 0
    while chunk := os.pread(descriptor, _CRC_CHUNK_BYTES, offset):
        crc = zlib.crc32(chunk, crc)
        offset += len(chunk)
    return crc


def format_frame(frame: Frame) -> str:
    """A frame as glibc's `backtrace_symbols` writes it; frames of a stack are then separated by a space.

    `module(function+0xoff) [0xaddress]`; `module(+0xoff) [0xaddress]` (offset from the module's base) if no function is
    known; `[0xaddress]` alone without a module; `module(function) [0xaddress]`, without an offset, if it is inlined.
    The function is the linker's, so that function+0xoff is where `nm` says. Names of C++ hold spaces, commas and
    parentheses: a frame ends where `[0x...]` does, at a space or the end (`dump.split_frames`), never at a mere space.
    """
    address = f"[{frame.address:#x}]"
    if frame.module_path is None:
        return address
    if frame.symbol is not None and frame.function_offset is not None:
        return f"{frame.module_path}({frame.symbol}+{frame.function_offset:#x}) {address}"
    if frame.function is not None:
        return f"{frame.module_path}({frame.function}) {address}"
    return f"{frame.module_path}(+{frame.offset or 0:#x}) {address}"


def frame_json(frame: Frame) -> dict[str, str | int | bool | None]:
    """A frame for the summary: address as "0x...", offset and line as numbers, null where unknown."""
    return {
        "address": f"{frame.address:#x}",
        "module": frame.module,
        "offset": frame.offset,
        "function": frame.function,
        "file": frame.file,
        "line": frame.line,
        "inlined": frame.inlined,
    }
