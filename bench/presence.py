"""What an agent's presence costs a program that does little: seconds until it records, and how much larger the program is.

Resident bytes are those of /proc/PID/smaps without the mappings of DPDK's own heap: Frida reads a heap without hugepages
whole when it attaches (it is a memfd), and what it reads is resident from then on. After leaving, what nobody wrote to is
told apart: pages of libraries' files, which were looked at for unwind tables and are the kernel's to take back at any time.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

PROGRAM = Path(__file__).parent.parent / "build" / "programs" / "waiter"
ROUNDS = 5
MIB = 1024
DPDKS_HEAP = re.compile(r"memfd:nohuge|/rtemap_|memfd:seg_")


def resident_kib(pid: int, *, written: bool = False) -> int:
    """KiB of the process that are in memory, DPDK's heap left out; `written`: only what was written to."""
    counted, total = True, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counted = not DPDKS_HEAP.search(line)
        elif counted and line.startswith(("Private_Dirty:", "Shared_Dirty:") if written else "Rss:"):
            total += int(line.split()[1])
    return total


def figures() -> list[dict[str, object]]:
    """A row for an ordinary program and one for a program that has locked its memory (mlockall)."""
    return [measured("an idle program", ()), measured("the same under mlockall", ("lock",))]


@contextlib.contextmanager
def allocating_every_millisecond(stdin: TextIO) -> Iterator[None]:
    """The program allocates all the time meanwhile, so that its first recorded event says when recording began."""
    over = threading.Event()

    def write() -> None:
        while not over.wait(0.001):
            stdin.write("leak 64\n")
            stdin.flush()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def measured(what: str, words: tuple[str, ...]) -> dict[str, object]:
    from frida_rtetrack import Host

    program = subprocess.Popen([PROGRAM, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdin is not None and program.stdout is not None
    while program.stdout.readline() != "ready\n":
        pass
    threading.Thread(target=program.stdout.read, daemon=True).start()  # else it would wait for somebody to read
    seconds, first, tracked, left, written = [], [], [], [], []
    try:
        before, before_written = resident_kib(program.pid), resident_kib(program.pid, written=True)
        for _ in range(ROUNDS):
            started, started_ns = time.monotonic(), time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            with allocating_every_millisecond(program.stdin), Host.attach(program.pid) as host:
                seconds.append(time.monotonic() - started)
                while host.tracking.totals.allocations == 0:
                    time.sleep(0.001)
                tracked.append(resident_kib(program.pid) - before)
                live = host.tracking.live()
                first.append((int(live["allocated_at_ns"][~live["baseline"]].min()) - started_ns) / 1e9)
            time.sleep(0.3)
            left.append(resident_kib(program.pid) - before)
            written.append(resident_kib(program.pid, written=True) - before_written)
    finally:
        program.kill()
        program.wait()
    return {
        "what": f"attach to {what}",
        "seconds_to_first_event": round(statistics.median(first), 2),
        "seconds": round(statistics.median(seconds), 2),
        "tracked_mib": round(statistics.median(tracked) / MIB, 1),
        "after_leaving_mib": [round(each / MIB, 1) for each in left],
        "after_leaving_written_to_mib": [round(each / MIB, 1) for each in written],
    }
