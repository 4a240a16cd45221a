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
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_IN_MILLISECONDS = (232, 281)  # epoll_wait, epoll_pwait: an int, -1 for none; the others point to their limit


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


def _has_time_limit(pid: int, tid: int) -> bool:
    """Whether the thread waits in a system call that a stop would make begin its time limit anew."""
    with open(f"/proc/{pid}/task/{tid}/syscall") as file:
        words = file.read().split()
    register = EINTR_WAITS.get(int(words[0]), "") if words[0].isdecimal() else ""
    if not register:
        return False
    limit = int(words[1 + _ARGUMENTS.index(register)], 16)
    return limit & 0xFFFF_FFFF != 0xFFFF_FFFF if int(words[0]) in _IN_MILLISECONDS else limit != 0


def _waits(pid: int, tid: int) -> int:
    """How often the thread has waited so far."""
    with open(f"/proc/{pid}/task/{tid}/status") as file:
        return int(next(line for line in file if line.startswith("voluntary_ctxt_switches")).split()[1])


def _wait_for_a_beginning(pid: int, tid: int) -> None:
    seen = _waits(pid, tid)
    deadline = time.monotonic() + _FRESH_WAIT_S
    while time.monotonic() < deadline and _has_time_limit(pid, tid) and _waits(pid, tid) == seen:
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
