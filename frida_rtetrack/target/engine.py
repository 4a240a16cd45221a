"""What is put into a target: the agent's script, and the native engine as source text and compiled ahead.

Both scripts and C are kept in files that a reader can take in, and are put together here: there is no build step for the
script, and none that is needed for the C.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

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
    return elf if source is not None and source[1].decode() == build.source_digest() else None


def native_compiler() -> str:
    """Who compiles the native engine here: `gcc 12.2 -O2`, or `TinyCC`."""
    elf = compiled_engine()
    built_by = None if elf is None else _BUILT_BY.search(elf)
    return "TinyCC" if built_by is None else built_by[1].decode()
