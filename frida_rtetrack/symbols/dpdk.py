"""Where DPDK's functions are in a module that says nothing of them itself: from its debug file, or from the user.

The agent finds exported names and .symtab by itself; this is for a program with DPDK linked in that was stripped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.symbols.symbolizer import Module, ModuleMap, Symbolizer

HOOKED = (
    "rte_malloc", "rte_malloc_socket", "rte_zmalloc", "rte_zmalloc_socket", "rte_calloc", "rte_calloc_socket",
    "rte_realloc", "rte_realloc_socket", "rte_free", "rte_free_sensitive", "rte_memzone_reserve",
    "rte_memzone_reserve_aligned", "rte_memzone_reserve_bounded", "rte_memzone_free", "rte_eal_init", "rte_eal_cleanup",
)  # fmt: skip
ASKED = ("rte_malloc_dump_heaps", "rte_memzone_walk", "rte_memseg_list_walk", "rte_socket_count",
         "rte_malloc_heap_socket_is_external")  # fmt: skip

_SYMBOL = re.compile(r"(?P<function>\w+)=(?P<module>.+)\+(?P<offset>0x[0-9a-fA-F]+|\d+)")

Offsets = dict[str, dict[str, int]]
"""Module (path or base name) -> function -> offset from the module's base, bytes."""


def parse_symbols(options: Sequence[str]) -> Offsets:
    """What `--symbol rte_malloc_socket=MODULE+0xOFF` says, given any number of times. Raises BadUsage."""
    found: Offsets = {}
    for option in options:
        match = _SYMBOL.fullmatch(option)
        if match is None:
            raise BadUsage(
                f"--symbol {option} is not of the form FUNCTION=MODULE+0xOFFSET.",
                "For example: --symbol rte_free=app+0x1234",
            )
        if match["function"] not in HOOKED + ASKED:
            raise BadUsage(
                f"--symbol: {match['function']} is no function that is hooked.", f"These are: {', '.join(HOOKED)}."
            )
        found.setdefault(match["module"], {})[match["function"]] = int(match["offset"], 0)
    return found


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
    return {**from_debug_file(program), **parse_symbols(options)}


def modules_like_dpdk(paths: Iterable[str], library: str | None) -> list[str]:
    """Base names of the modules at `paths` that may have to do with DPDK, or with `library` where the user named one."""
    wanted = "rte_" if library is None else library.split(".")[0]
    names = {os.path.basename(path) for path in paths}
    return sorted(name for name in names if "rte_" in name or wanted in name)[:8]
