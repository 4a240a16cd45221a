"""Memory of Frida's library that is given back, in this process."""

from __future__ import annotations

import re
import subprocess
import sys

SCRIPT = """
import frida
from pathlib import Path
from frida_rtetrack.target.footprint import release_own

def resident():
    return sum(int(line.split()[1]) for line in lines() if line.startswith("Rss:"))

def lines():
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.split()[0][-1] != ":":
            inside = "/_frida." in line and line.split()[1][:2] == "r-"
        elif inside:
            yield line

library = Path(frida._frida.__file__).read_bytes()
device = frida.get_local_device()
before = resident()
for begin, end in [map(lambda word: int(word, 16), line.split()[0].split("-"))
                   for line in Path("/proc/self/maps").read_text().splitlines() if "/_frida." in line and " r-xp " in line]:
    with open("/proc/self/mem", "rb") as memory:
        memory.seek(begin)
        memory.read(min(end - begin, 16 << 20))
full = resident()
release_own()
print(before, full, resident(), device.enumerate_processes() != [])
"""


def test_what_was_read_of_fridas_library_is_let_go_of_and_read_again_where_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, full, after, works = re.findall(r"\w+", done.stdout)
    assert int(full) > int(before)
    assert int(after) < int(full) // 2
    assert works == "True"
