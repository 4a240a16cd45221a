"""What a host that was killed has left in a program: its agent leaves by itself, in a second or two.

Two agents of Frida's at once are one too many: the one that leaves gives functions their bytes back as it found them,
while the other one's hooks are there.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from frida_rtetrack.target.arrival.modules import Memory
from frida_rtetrack.target.arrival.region import CODE, GONE, Region

_RUNNABLE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rwxp 00000000 00:00 0 *$", re.MULTILINE)
_PAGE_BYTES = 4096
_BEGINNING = CODE[:64]
_MOST_BYTES = 1 << 24
_LOOK_S = 0.02


def wait_for_earlier_agent(pid: int, seconds: float) -> bool:
    """Waits until Frida is gone that came with an earlier host. False: not within `seconds`."""
    deadline = time.monotonic() + seconds
    while _is_leaving(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


def _is_leaving(pid: int) -> bool:
    """Whether there is a stand-in of an earlier host's, and the thread that took Frida's agent in then."""
    try:
        memory = Memory(pid)
    except OSError:
        return False
    try:
        regions = _regions(pid, memory)
        return any(region.state != GONE and _has_thread(pid, region.fridas_tid) for region in regions)
    except OSError:
        return False
    finally:
        memory.close()


def _regions(pid: int, memory: Memory) -> list[Region]:
    found = []
    for low, high in _RUNNABLE.findall(Path(f"/proc/{pid}/maps").read_text(errors="replace")):
        start, end = int(low, 16), int(high, 16)
        if end - start > _MOST_BYTES:
            continue  # somebody's JIT
        data = memory.read_some(start, end - start)
        pages = range(0, len(data), _PAGE_BYTES)
        found += [Region(memory, start + at) for at in pages if data.startswith(_BEGINNING, at)]
    return found


def _has_thread(pid: int, tid: int) -> bool:
    return tid != 0 and Path(f"/proc/{pid}/task/{tid}").exists()
