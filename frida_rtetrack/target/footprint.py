"""What Frida's agent takes of a program that has locked its memory (mlockall): it need not all be resident.

Under mlockall the whole of Frida's library is, 34 MB, of which some 7 are ever used. Nothing else of the program's is touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (r-[x-]p) .* /memfd:frida-agent\S*\.so \(deleted\)$")
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
            for start, end, about in _fridas(file)
            if about.get("Anonymous") == ["0", "kB"] and "lo" in about.get("VmFlags", [])
        ]


def _fridas(smaps: Iterator[str]) -> Iterator[tuple[int, int, dict[str, list[str]]]]:
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
        mapping = _MAPPING.match(line.rstrip("\n"))
        found = None if mapping is None else (int(mapping[1], 16), int(mapping[2], 16), {})
    if found is not None:
        yield found
