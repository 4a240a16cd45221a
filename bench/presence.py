"""What an agent's presence costs a program that does little: seconds until it records, and how much larger the program is.

Resident bytes are those of /proc/PID/smaps without the mappings of DPDK's own heap: Frida reads a heap without hugepages
whole when it attaches (it is a memfd), and what it reads is resident from then on.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from pathlib import Path

PROGRAM = Path(__file__).parent.parent / "build" / "programs" / "waiter"
ROUNDS = 5
MIB = 1024
DPDKS_HEAP = re.compile(r"memfd:nohuge|/rtemap_|memfd:seg_")


def resident_kib(pid: int) -> int:
    """KiB of the process that are in memory, DPDK's heap left out."""
    counted, total = True, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counted = not DPDKS_HEAP.search(line)
        elif counted and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def figures() -> list[dict[str, object]]:
    """A row for an ordinary program and one for a program that has locked its memory (mlockall)."""
    return [measured("an idle program", ()), measured("the same under mlockall", ("lock",))]


def measured(what: str, words: tuple[str, ...]) -> dict[str, object]:
    from frida_rtetrack import Host

    program = subprocess.Popen([PROGRAM, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdin is not None and program.stdout is not None
    while program.stdout.readline() != "ready\n":
        pass
    seconds, tracked, left = [], [], []
    try:
        before = resident_kib(program.pid)
        for _ in range(ROUNDS):
            started = time.monotonic()
            with Host.attach(program.pid) as host:
                seconds.append(time.monotonic() - started)
                seen = host.tracking.totals.allocations
                program.stdin.write("leak 64\n")
                program.stdin.flush()
                while host.tracking.totals.allocations == seen:
                    time.sleep(0.001)
                tracked.append(resident_kib(program.pid) - before)
            time.sleep(0.3)
            left.append(resident_kib(program.pid) - before)
    finally:
        program.kill()
        program.wait()
    return {
        "what": f"attach to {what}",
        "seconds": round(statistics.median(seconds), 2),
        "tracked_mib": round(statistics.median(tracked) / MIB, 1),
        "after_leaving_mib": [round(each / MIB, 1) for each in left],
    }
