"""The registers of a process's threads, each stopped once for some ten microseconds.

    registers PID         prints {"words": {TID: [words]}, "longest_us": N, "unseen": THREADS}, as JSON

A thread that waits with a time limit in a system call that a stop ends with EINTR (signal(7)) is taken at the beginning
of a wait, if one comes in time, and made to begin it again. What does not stop is left out, and counted.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field

from frida_rtetrack.target import apart
from frida_rtetrack.target.arrival.ptrace import NotStopped, Stopped, ThreadGone, TracedThread
from frida_rtetrack.target.arrival.waits import Wait, begin_again

SECONDS = 30.0
_STOP_S = 1.0
_FRESH_WAITS_S = 1.0
"""For all threads together."""
_LOOK_S = 0.0005
_ENDED, _CANNOT_STOP = "ZX", "DTt"


@dataclass(frozen=True)
class Registers:
    """What the threads of some processes hold."""

    words: dict[int, list[int]] = field(default_factory=dict)
    """By thread id: its general, vector and other registers."""
    longest_stop_s: float = 0.0
    unseen: int = 0
    """Threads that could not be looked at: another tracer has them, they are stopped, or in an uninterruptible sleep."""

    def __add__(self, other: Registers) -> Registers:
        return Registers(
            self.words | other.words, max(self.longest_stop_s, other.longest_stop_s), self.unseen + other.unseen
        )


def threads_of(pid: int) -> list[int]:
    """The ids of a process's threads; [] where it is gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def read(pid: int) -> Registers:
    """The registers of the threads of process `pid`."""
    try:
        done = subprocess.run(
            apart.command(__name__, pid),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
        told = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return Registers(unseen=len(threads_of(pid)))
    return Registers(
        {int(tid): words for tid, words in told["words"].items()}, told["longest_us"] / 1e6, told["unseen"]
    )


def _wait_for_a_beginning(pid: int, tid: int, deadline: float) -> None:
    first = now = Wait.of(pid, tid)
    while first and now and now.limit_would_start_anew and now.switches == first.switches:
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK_S)
        now = Wait.of(pid, tid)


def _words(pid: int, tid: int) -> tuple[list[int], int]:
    """What the thread's registers hold, and for how many nanoseconds it stood."""
    thread = TracedThread(tid)
    thread.seize()
    begun = time.perf_counter_ns()
    thread.interrupt(_STOP_S)
    try:
        found = thread.registers()
        begin_again(pid, tid, thread, found)
        vectors = thread.extended_state()
    finally:
        thread.detach()
    stood = time.perf_counter_ns() - begun
    return [*found.values.values(), *struct.unpack_from(f"<{len(vectors) // 8}Q", vectors)], stood


def main() -> None:
    """Does what the module's text says."""
    pid = int(sys.argv[1])
    fresh = time.monotonic() + _FRESH_WAITS_S
    found: dict[int, list[int]] = {}
    longest = unseen = 0
    threads = threads_of(pid)
    for number, tid in enumerate(threads):
        _wait_for_a_beginning(pid, tid, fresh)
        wait = Wait.of(pid, tid)
        if wait is None or wait.state in _ENDED:
            continue
        if wait.state in _CANNOT_STOP:
            unseen += 1
            continue
        try:
            found[tid], stood = _words(pid, tid)
            longest = max(longest, stood)
        except ThreadGone:
            continue
        except NotStopped:  # it stops as soon as it can unless we are gone: nothing more is asked of this process
            unseen += len(threads) - number
            break
        except (OSError, Stopped):
            unseen += 1
    print(json.dumps({"words": found, "longest_us": longest // 1000, "unseen": unseen}))
