"""The registers of a process's threads, each stopped once for some ten microseconds.

    registers PID [STACK_BYTES]   prints {"words": {TID: [words]}, "frames": {TID: [[stack pointer, address]]}, "longest_us": N,
                                  "unseen": THREADS}, as JSON

With STACK_BYTES so much of each stack is copied while its thread stands, and followed when it goes on: the frames, innermost
first, as far as that goes.

A thread that waits with a time limit that a stop makes begin anew, by EINTR (signal(7)) or as a socket's does, is taken at
the beginning of a wait, if one comes in time. What does not stop is left out, and counted.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import json
import os
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field

from frida_rtetrack.target import ownprocess
from frida_rtetrack.target.arrival import ptrace
from frida_rtetrack.target.arrival.modules import AddressMap, Memory
from frida_rtetrack.target.arrival.ptrace import NotStopped, Stopped, ThreadGone, TracedThread
from frida_rtetrack.target.arrival.unwind import Frame, StackCopy, Unwinder
from frida_rtetrack.target.arrival.waits import Wait, begin_again, has_socket_limit

SECONDS = 30.0
STACK_BYTES = 64 << 10
_STOP_S = 1.0
_FRESH_WAITS_S = 1.0
"""For all threads together."""
_LOOK_S = 0.0005
_TICK_S = 0.01
"""Of the kernel's timer, at its slowest."""
_SHORT_SLEEP_S = 0.2
_ENDED, _CANNOT_STOP = "ZX", "DTt"


@dataclass(frozen=True)
class Registers:
    """What the threads of some processes hold."""

    words: dict[int, list[int]] = field(default_factory=dict)
    """By thread id: its general, vector and other registers."""
    longest_stop_s: float = 0.0
    unseen: int = 0
    """Threads that could not be looked at: another tracer has them, they are stopped, or in an uninterruptible sleep."""
    frames: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """By thread id: (stack pointer, address) of each call, innermost first; the address is a return address but in the first."""

    def __add__(self, other: Registers) -> Registers:
        return Registers(
            self.words | other.words,
            max(self.longest_stop_s, other.longest_stop_s),
            self.unseen + other.unseen,
            self.frames | other.frames,
        )

    def frame_at(self, address: int) -> tuple[int, int, int] | None:
        """(thread, how manieth, address) of the call whose part of a stack `address` is in; None where that is not known."""
        for tid, frames in self.frames.items():
            pointers = [pointer for pointer, _ in frames]
            number = bisect.bisect_right(pointers, address) - 1
            if 0 <= number < len(frames) - 1:  # of the last one it is not known where it ends
                return tid, number, frames[number][1]
        return None


def threads_of(pid: int) -> list[int]:
    """The ids of a process's threads; [] where it is gone."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def read(pid: int, *, frames: bool = False) -> Registers:
    """The registers of the threads of process `pid`; with `frames`, which calls they are in, too."""
    try:
        done = subprocess.run(
            ownprocess.command(__name__, pid, *([STACK_BYTES] if frames else [])),
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
        {int(tid): words for tid, words in told["words"].items()},
        told["longest_us"] / 1e6,
        told["unseen"],
        {int(tid): [(pointer, address) for pointer, address in found] for tid, found in told["frames"].items()},
    )


def _wait_for_a_beginning(pid: int, tid: int, deadline: float) -> None:
    first = now = Wait.of(pid, tid)
    if first is None or not (first.limit_would_start_anew or has_socket_limit(pid, first)):
        return
    while now and (now.call, now.switches) == (first.call, first.switches):
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK_S)
        now = Wait.of(pid, tid)


def _out_of_the_kernels_hands(pid: int, tid: int) -> Wait | None:
    """How it stands: a moment later where it is in a short sleep that nothing interrupts, as for a page while another forks."""
    deadline = time.monotonic() + _SHORT_SLEEP_S
    while (now := Wait.of(pid, tid)) is not None and now.state == "D" and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    return now


@dataclass(frozen=True)
class _Seen:
    """One thread, while it stood."""

    registers: ptrace.Registers
    words: list[int]
    stack: StackCopy
    stood_ns: int


def _look(pid: int, wait: Wait, tid: int, memory: Memory | None, stack_bytes: int) -> _Seen:
    thread = TracedThread(tid)
    thread.seize()
    begun = time.perf_counter_ns()
    thread.interrupt(_STOP_S)
    try:
        found = thread.registers()
        begin_again(pid, tid, thread, found)
        vectors = thread.extended_state()
        pointer = found["rsp"]
        stack = StackCopy(pointer, b"" if memory is None else memory.read_some(pointer, stack_bytes))
        stood = time.perf_counter_ns() - begun
        if found.signed("rax") == -errno.EAGAIN and has_socket_limit(pid, wait):
            time.sleep(_TICK_S)  # it was in the last one of its limit: what it would have waited for, it does
    finally:
        thread.detach()
    words = [*found.values.values(), *struct.unpack_from(f"<{len(vectors) // 8}Q", vectors)]
    return _Seen(found, words, stack, stood)


def _frames(unwinder: Unwinder, seen: _Seen) -> list[tuple[int, int]]:
    """(stack pointer, address), as far as it goes."""
    found: list[Frame] = []
    with contextlib.suppress(
        Exception
    ):  # tables and stacks are the program's: whatever is wrong with them, the registers count
        unwinder.walk(seen.registers, seen.stack, learn=True, into=found)
    return [(frame.stack_pointer, frame.address) for frame in found]


def main() -> None:
    """Does what the module's text says."""
    pid, stack_bytes = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    memory = Memory(pid) if stack_bytes else None
    seen: dict[int, _Seen] = {}
    fresh = time.monotonic() + _FRESH_WAITS_S
    unseen = 0
    threads = threads_of(pid)
    for number, tid in enumerate(threads):
        _wait_for_a_beginning(pid, tid, fresh)
        wait = _out_of_the_kernels_hands(pid, tid)
        if wait is None or wait.state in _ENDED:
            continue
        if wait.state in _CANNOT_STOP:
            unseen += 1
            continue
        try:
            seen[tid] = _look(pid, wait, tid, memory, stack_bytes)
        except ThreadGone:
            continue
        except NotStopped:  # it stops as soon as it can unless we are gone: nothing more is asked of this process
            unseen += len(threads) - number
            break
        except (OSError, Stopped):
            unseen += 1
    frames = {}
    if memory is not None:
        unwinder = Unwinder(memory, AddressMap(memory))
        frames = {tid: _frames(unwinder, each) for tid, each in seen.items()}
    longest = max((each.stood_ns for each in seen.values()), default=0)
    words = {tid: each.words for tid, each in seen.items()}
    print(json.dumps({"words": words, "frames": frames, "longest_us": longest // 1000, "unseen": unseen}))
