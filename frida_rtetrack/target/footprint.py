"""What Frida's library takes of memory, in the program and in this process: it need not all be resident.

Under mlockall the whole of Frida's agent is, 34 MB, of which some 7 are ever used. Nothing else of the program's is touched.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator

_AGENT = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (r-[x-]p) .* /memfd:frida-agent\S*\.so \(deleted\)$")
_OWN_LIBRARY = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (r-[x-]p) .*/_frida\.\S*so$")
_MADV_DONTNEED = 4
_KEY = re.compile(r"[A-Z]\w*")


def has_locked_memory(pid: int) -> bool:
    """Whether process `pid` keeps memory from being paged out. Raises OSError."""
    with open(f"/proc/{pid}/status") as file:
        return any(line.startswith("VmLck:") and int(line.split()[1]) > 0 for line in file)


def needlessly_resident(pid: int) -> list[tuple[int, int]]:
    """(start, bytes) of the mappings of Frida's library that are locked and the same as its file: they can be read again.

    A mapping of which a page was written to (relocations) is not among them. Raises OSError.
    """
    with open(f"/proc/{pid}/smaps", errors="replace") as file:
        return [
            (start, end - start)
            for start, end, about in _mappings(file, _AGENT)
            if about.get("Anonymous") == ["0", "kB"] and "lo" in about.get("VmFlags", [])
        ]


def release_own() -> None:
    """Lets go of what Frida's library was read of in this process: 25 MB, most of which is the agent that is in a program now."""
    try:
        with open("/proc/self/smaps", errors="replace") as file:
            same = [
                (start, end - start)
                for start, end, about in _mappings(file, _OWN_LIBRARY)
                if about.get("Anonymous") == ["0", "kB"]
            ]
    except OSError:
        return
    libc = ctypes.CDLL(None)
    for start, size in same:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_DONTNEED)  # read again where it is used again


def _mappings(smaps: Iterator[str], which: re.Pattern[str]) -> Iterator[tuple[int, int, dict[str, list[str]]]]:
    """The mappings of Frida's library that nobody may write to, with what smaps says of each (proc(5))."""
    found: tuple[int, int, dict[str, list[str]]] | None = None
    for line in smaps:
        key, colon, value = line.partition(":")
        if colon and _KEY.fullmatch(key):
            if found is not None:
                found[2][key] = value.split()
            continue
        if found is not None:
            yield found
        mapping = which.match(line.rstrip("\n"))
        found = None if mapping is None else (int(mapping[1], 16), int(mapping[2], 16), {})
    if found is not None:
        yield found
