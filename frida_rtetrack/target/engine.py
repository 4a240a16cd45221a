"""What is put into a target: the agent's script, and the native engine as source text and compiled ahead.

Both scripts and C are kept in files that a reader can take in, and are put together here: there is no build step for the
script, and none that is needed for the C.
"""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frida_rtetrack.errors import AgentFailed
from frida_rtetrack.native import build

COMPILER_VARIABLE = "RTETRACK_COMPILER"
"""Set to `tinycc`, the engine is compiled in the target even where it was compiled ahead: to compare, or to be sure."""

_PACKAGE = Path(__file__).parents[1]
_INCLUDE_C = re.compile(r'^#include "([^"]+)".*\n', re.MULTILINE)
_INCLUDE_SCRIPT = re.compile(r'^//#include "([^"]+)"\n', re.MULTILINE)
_BUILT_BY = re.compile(rb"rtetrack engine by ([^\0]+)\0")
_SOURCE = re.compile(rb"rtetrack source ([0-9a-f]+)\0")


def _put_together(path: Path, include: re.Pattern[str], folder: Path) -> str:
    """The text of `path` with each line that includes a file of `folder` replaced by that file, once."""
    seen: set[str] = set()

    def expand(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        return include.sub(lambda match: expand(match[1]), (folder / name).read_text())

    return expand(path.name)


def agent_script() -> str:
    """agent.js with the files of agent/ in it."""
    return _put_together(_PACKAGE / "agent.js", _INCLUDE_SCRIPT, _PACKAGE)


def native_source(name: str) -> str:
    """The C file `name` of native/ with all that it includes, as one text for TinyCC."""
    folder = _PACKAGE / "native"
    return _put_together(folder / name, _INCLUDE_C, folder)


def compiled_engine() -> bytes | None:
    """The native engine as an ELF shared object; None where there is none of this source for this machine."""
    if os.environ.get(COMPILER_VARIABLE, "").lower() == "tinycc" or platform.machine() != "x86_64":
        return None
    try:
        elf = (_PACKAGE / "native" / build.ENGINE).read_bytes()
    except OSError:
        return None
    source = _SOURCE.search(elf)
    fits = _is_whole(elf) and source is not None and source[1].decode() == build.source_digest()
    return elf if fits else None


def _is_whole(elf: bytes) -> bool:
    """Whether it is an x86-64 shared object to its end, where the section headers are: another one would crash the target.

    System V ABI, Elf64_Ehdr: e_machine at 18, e_shoff at 40, e_shentsize and e_shnum at 58 and 60.
    """
    if len(elf) < 64 or elf[:5] != b"\x7fELF\x02" or elf[18:20] != b"\x3e\0":
        return False
    sections, size, count = struct.unpack_from("<Q10xHH", elf, 40)
    return len(elf) >= int(sections) + int(size) * int(count) > 64


def native_compiler() -> str:
    """Who compiles the native engine here: `gcc 12.2 -O2`, or `TinyCC`."""
    elf = compiled_engine()
    built_by = None if elf is None else _BUILT_BY.search(elf)
    return "TinyCC" if built_by is None else built_by[1].decode()


def start_agent(call: Callable[..., Any], memory_fd: int, options: dict[str, Any], engine: str) -> dict[str, Any]:
    """Has a loaded agent begin with `engine` ("native", "portable"); `call` is AgentLink's. Returns its state.

    The native engine goes as it was compiled ahead; where the target cannot load that, or there is none, as source.
    `builtBy` in the state says who compiled it. Raises RtetrackError.
    """
    compiled = compiled_engine() if engine == "native" else None
    if compiled is not None:
        try:
            return dict(call("start", memory_fd, options, "", compiled))
        except AgentFailed:  # another machine's, or a Frida that takes no ELF: nothing has been done yet
            pass
    return dict(call("start", memory_fd, options, native_source(f"engine_{engine}.c")))
