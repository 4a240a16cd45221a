"""Where DPDK's functions are in a module that says nothing of them itself: from its debug file, or from the user.

The agent finds exported names and .symtab by itself; this is for a program with DPDK linked in that was stripped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from frida_rtetrack.errors import BadUsage, NoDpdk
from frida_rtetrack.options import Options
from frida_rtetrack.symbols.elf import ElfError, ElfFile
from frida_rtetrack.symbols.symbolizer import Module, ModuleMap, Symbolizer

HOOKED = (
    "rte_malloc", "rte_malloc_socket", "rte_zmalloc", "rte_zmalloc_socket", "rte_calloc", "rte_calloc_socket",
    "rte_realloc", "rte_realloc_socket", "rte_free", "rte_free_sensitive", "rte_memzone_reserve",
    "rte_memzone_reserve_aligned", "rte_memzone_reserve_bounded", "rte_memzone_free", "rte_eal_init", "rte_eal_cleanup",
)  # fmt: skip
ASKED = ("rte_malloc_dump_heaps", "rte_memzone_walk", "rte_memseg_list_walk", "rte_socket_count",
         "rte_malloc_heap_socket_is_external")  # fmt: skip

NEEDED = tuple(name for name in HOOKED if name not in ("rte_free_sensitive", "rte_eal_init", "rte_eal_cleanup"))
"""Who does not see all of these, or knows that they are not there, does not see every block come and go."""

INIT = 1
_ABSENT = re.compile(r"(\w+)=none")
_SYMBOL = re.compile(r"(?P<function>\w+)=(?P<module>.+)\+(?P<offset>0x[0-9a-fA-F]+|\d+)")

Offsets = dict[str, dict[str, int]]
"""Module (path or base name) -> function -> offset from the module's base, bytes."""


def parse_symbols(options: Sequence[str]) -> Offsets:
    """What `--symbol rte_malloc_socket=MODULE+0xOFF` says, given any number of times. Raises BadUsage."""
    found: Offsets = {}
    for option in options:
        absent, match = _ABSENT.fullmatch(option), _SYMBOL.fullmatch(option)
        if absent is None and match is None:
            raise BadUsage(
                f"--symbol {option} is not of the form FUNCTION=MODULE+0xOFFSET.",
                "For example: --symbol rte_free=app+0x1234, or --symbol rte_calloc=none for one that is not in it.",
            )
        function = (absent or match)[1]  # type: ignore[index]
        if function not in HOOKED + ASKED:
            raise BadUsage(f"--symbol: {function} is no function that is hooked.", f"These are: {', '.join(HOOKED)}.")
        if match is not None:
            found.setdefault(match["module"], {})[function] = int(match["offset"], 0)
    return found


def unseen(pid: int, options: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Module of `--symbol` -> the functions of NEEDED that neither the user names nor its file, where there are any.

    Process `pid` runs the program. A module whose file has names of its own, or a debug file, has no others than those.
    """
    absent = {match[1] for match in map(_ABSENT.fullmatch, options) if match is not None}
    try:
        program = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        program = ""
    missing: dict[str, tuple[str, ...]] = {}
    for module, given in parse_symbols(options).items():
        path = program if module in (program, os.path.basename(program)) else module
        if os.path.isabs(path) and _names_its_functions(path):
            continue
        left = tuple(name for name in NEEDED if name not in given and name not in absent)
        if left:
            missing[module] = left
    return missing


def what_is_unseen(pid: int, options: Sequence[str]) -> list[str]:
    """A sentence for each module of `unseen`."""
    return [
        f"--symbol does not say where {', '.join(functions)} are in {module}: what they do is not seen, so no free is "
        f"accused. Give them too; --symbol {functions[0]}=none says that it is not in the program."
        for module, functions in unseen(pid, options).items()
    ]


def _names_its_functions(path: str) -> bool:
    """Whether the ELF file at `path`, or its debug file, tells where DPDK's functions are."""
    try:
        tables = ElfFile(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)).functions()
    except (OSError, ElfError):
        return False
    return any(table.addresses(["rte_free"]) for table in tables) or bool(from_debug_file(path))


def from_debug_file(path: str) -> Offsets:
    """The functions of the ELF file `path` that its debug file (by build-id or debuglink) names; empty without one."""
    functions = Symbolizer(ModuleMap()).functions_in_debug_file(Module(path, 0, 1 << 62, 0), HOOKED + ASKED)
    return {path: functions} if functions else {}


def symbols_of(pid: int, options: Sequence[str]) -> Offsets:
    """What is known of the program that process `pid` runs: its debug file's word, then the user's. Raises BadUsage."""
    try:
        program = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return parse_symbols(options)
    found = from_debug_file(program)
    for module, given in parse_symbols(options).items():
        found[module] = {**found.get(module, {}), **given}
    return found


def never_loaded(options: Sequence[str], loaded: Iterable[str]) -> list[str]:
    """A sentence for each module that --symbol names and that is not among the paths `loaded`."""
    there = {name for path in loaded for name in (path, os.path.basename(path))}
    return [
        f"--symbol names {name}, which the program never loaded."
        for name in parse_symbols(options)
        if name not in there
    ]


def check_init(pid: int, options: Options) -> None:
    """Raises NoDpdk where `pid` is the system's init: nobody's to be touched. In a container it may be the program meant."""
    if pid == INIT and not may_be_in(pid, options):
        with open(f"/proc/{pid}/comm") as file:
            raise NoDpdk(f"Process {pid} is the system's init ({file.read().strip()}), and has no DPDK in it.")


def may_be_in(pid: int, options: Options) -> bool:
    """Whether DPDK may be in process `pid`, as far as can be told without touching it."""
    if options.symbols or options.library is not None:
        return True
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
        program = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return True
    files = {
        os.path.basename(line[5]) for line in (row.split(maxsplit=5) for row in maps.splitlines()) if len(line) > 5
    }
    return any("rte_" in name or "dpdk" in name for name in files) or _names_its_functions(program)


def modules_like_dpdk(paths: Iterable[str], library: str | None) -> list[str]:
    """Base names of the modules at `paths` that may have to do with DPDK, or with `library` where the user named one."""
    wanted = "rte_" if library is None else library.split(".")[0]
    names = {os.path.basename(path) for path in paths}
    return sorted(name for name in names if "rte_" in name or wanted in name)[:8]
