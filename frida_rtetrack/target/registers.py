"""The registers of a process's threads, each stopped once for some ten microseconds.

    registers PID         prints {"registers": {TID: [words]}, "longest_us": N}, as JSON

A thread that waits with a time limit in a system call that a stop ends with EINTR (signal(7)) is taken at the beginning
of a wait, if one comes in time, and made to begin it again. What does not stop is left out.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time

from frida_rtetrack.target import apart
from frida_rtetrack.target.arrival.ptrace import NO_SYSTEM_CALL, NotStopped, Stopped, ThreadGone, TracedThread
from frida_rtetrack.target.arrival.safepoint import EINTR_WAITS

SECONDS = 30.0
_STOP_S = 1.0
_FRESH_WAIT_S = 1.0
_LOOK_S = 0.0005
_EINTR = -4


def read(pid: int) -> tuple[dict[int, list[int]], float]:
    """{thread id: words of its general, vector and other registers}, and the longest stop (seconds); ({}, 0) where none can
    be had."""
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
        return {}, 0.0
    return {int(tid): words for tid, words in told["registers"].items()}, told["longest_us"] / 1e6


def _waits_in(pid: int, tid: int) -> tuple[int | None, int]:
    """The system call that the thread waits in, if any, and how often it has waited so far."""
    with open(f"/proc/{pid}/task/{tid}/syscall") as file:
        first = file.read().split()[0]
    with open(f"/proc/{pid}/task/{tid}/status") as file:
        switches = next(line for line in file if line.startswith("voluntary_ctxt_switches"))
    return (int(first) if first.isdecimal() else None), int(switches.split()[1])


def _wait_for_a_beginning(pid: int, tid: int) -> None:
    call, seen = _waits_in(pid, tid)
    deadline = time.monotonic() + _FRESH_WAIT_S
    while EINTR_WAITS.get(call or 0) and time.monotonic() < deadline:
        call, switches = _waits_in(pid, tid)
        if switches != seen:
            return
        time.sleep(_LOOK_S)


def _words(pid: int, tid: int) -> tuple[list[int], int]:
    """What the thread's registers hold, and for how many nanoseconds it stood."""
    thread = TracedThread(tid)
    _wait_for_a_beginning(pid, tid)
    thread.seize()
    begun = time.perf_counter_ns()
    thread.interrupt(_STOP_S)
    try:
        found = thread.registers()
        if (
            found.signed("rax") == _EINTR
            and found.signed("orig_rax") in EINTR_WAITS
            and not _has_signal(pid, tid, thread)
        ):
            thread.set_registers(found.but(rip=found["rip"] - 2, rax=found["orig_rax"], orig_rax=NO_SYSTEM_CALL))
        vectors = thread.extended_state()
    finally:
        thread.detach()
    stood = time.perf_counter_ns() - begun
    return [*found.values.values(), *struct.unpack_from(f"<{len(vectors) // 8}Q", vectors)], stood


def _has_signal(pid: int, tid: int, thread: TracedThread) -> bool:
    """Whether the wait ended for a signal that is to be handled, not for our stop alone."""
    with open(f"/proc/{pid}/task/{tid}/status") as file:
        status = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    return bool((int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)) & ~thread.signal_mask())


def main() -> None:
    """Does what the module's text says."""
    pid = int(sys.argv[1])
    found: dict[int, list[int]] = {}
    longest = 0
    for tid in map(int, os.listdir(f"/proc/{pid}/task")):
        try:
            found[tid], stood = _words(pid, tid)
            longest = max(longest, stood)
        except (OSError, StopIteration, IndexError, NotStopped, Stopped, ThreadGone):
            continue
    print(json.dumps({"registers": found, "longest_us": longest // 1000}))
