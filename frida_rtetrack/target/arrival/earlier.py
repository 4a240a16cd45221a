"""What a host that was killed has left in a program: its agent leaves by itself, in a second or two.

Two agents of Frida's at once are one too many: the one that leaves gives functions their bytes back as it found them,
while the other one's hooks are there.
"""

from __future__ import annotations

import time
from pathlib import Path

from frida_rtetrack.target.arrival.modules import Memory
from frida_rtetrack.target.arrival.region import CODE, GONE, Region, pages_for_code

_BEGINNING = CODE[:64]
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
    pages = pages_for_code(pid)
    return [Region(memory, page) for page in pages if memory.read_some(page, len(_BEGINNING)) == _BEGINNING]


def _has_thread(pid: int, tid: int) -> bool:
    return tid != 0 and Path(f"/proc/{pid}/task/{tid}").exists()
