"""The helper process: looks for a safe moment, borrows a thread, and says where the stand-in is.

    helper PID SECONDS HOST    prints "standin TID ADDRESS LOOKS LONGEST_US", "busy WHY" or "refused WHY"

HOST is who started it: without that it looks no further. A look stops one thread for some hundred microseconds. The main thread comes first; where it does not stand well, so does
another one that waits.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Iterator

from frida_rtetrack.target.arrival import lending
from frida_rtetrack.target.arrival.modules import AddressMap, Memory
from frida_rtetrack.target.arrival.ptrace import (
    NotStopped,
    Registers,
    Stopped,
    ThreadGone,
    TracedThread,
)
from frida_rtetrack.target.arrival.region import FUNCTIONS, GONE, OPTIONAL_FUNCTIONS, Region
from frida_rtetrack.target.arrival.safepoint import Judge, Unsafe
from frida_rtetrack.target.arrival.unwind import NoEnd, NotKnownYet, StackCopy, StackTooDeep, Unwinder
from frida_rtetrack.target.arrival.waits import WAITS, Wait, begin_again, has_socket_limit, tracer_of

STOP_S = 3.0
"""For a thread to stop, on a busy machine; one that has just gone into vfork does when its child has executed something."""
STANDIN_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.0001, 0.01
FRESH_WAIT_S = 2.0
"""So long the beginning of a wait is looked for whose time limit a stop makes start anew."""
MAIN_ONLY_S = 0.2
STOPPED = "it was stopped (SIGSTOP) meanwhile"
_STACK_BYTES, _STACK_MAX_BYTES = 1 << 14, 1 << 23


class Refused(Exception):
    """It cannot be done in this process, now or later."""


class Arrival:
    """The search for a moment, in one process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.looks = 0
        self.longest_us = 0
        self.why = "no thread could be looked at"
        self._memory = Memory(pid)
        self._stack_bytes: dict[int, int] = {}
        self._fresh: dict[int, int] = {}
        self._begun = time.monotonic()
        self._know()

    def _know(self) -> None:
        self._addresses = AddressMap(self._memory)
        self._unwinder = Unwinder(self._memory, self._addresses)
        self._judge = Judge(self._memory, self._addresses)
        libc = self._judge.libc
        if libc is None:
            raise Refused("its C library was not found")
        functions = {name: self._address_of(name) for name in FUNCTIONS + OPTIONAL_FUNCTIONS}
        self._functions = {name: address for name, address in functions.items() if address is not None}
        missing = {*FUNCTIONS, "dlopen", "dlclose", "fork"} - self._functions.keys()
        if missing:
            raise Refused(f"its C library does not define {', '.join(sorted(missing))}")

    def _address_of(self, name: str) -> int | None:
        """In the C library, or in those that were part of it once (glibc before 2.34)."""
        found = self._judge.libc.export(name) if self._judge.libc is not None else None
        if found is not None:
            return found
        return next((address for module in self._addresses.modules if (address := module.export(name))), None)

    def run(self, seconds: float, host: int) -> Region | None:
        """Looks until the stand-in is there; None: no safe moment came. Raises Refused, CannotLend."""
        deadline = self._begun + seconds
        pause = FIRST_PAUSE_S
        for tid in self._candidates():
            if time.monotonic() > deadline:
                return None
            if os.getppid() != host:
                raise Refused("who wanted to come in is gone")
            try:
                region = self._look(tid)
            except (ThreadGone, ProcessLookupError):
                region = None
            except NotStopped:
                self.why = "it did not stop (vfork, or an uninterruptible sleep)"
                raise Refused(self.why) from None
            except Stopped:
                raise Refused(STOPPED) from None
            if region is not None:
                return region
            time.sleep(pause * random.uniform(0.3, 1.7))
            pause = min(pause * 1.3, LONGEST_PAUSE_S)
        return None

    def _candidates(self) -> Iterator[int]:
        while True:
            if time.monotonic() - self._begun < MAIN_ONLY_S:
                yield self.pid
                continue
            others = [int(name) for name in os.listdir(f"/proc/{self.pid}/task") if int(name) != self.pid]
            random.shuffle(others)
            for tid in others[:8]:
                wait = Wait.of(self.pid, tid)
                if wait is not None and wait.call in WAITS:
                    yield tid
                    break
            yield self.pid

    def _worth_stopping(self, tid: int) -> bool:
        """Whether a look makes sense, and disturbs nothing."""
        wait = Wait.of(self.pid, tid)
        if wait is None or wait.state in "ZX":
            self.why = "its main thread has ended"
            return False
        if wait.state == "T":
            raise Stopped
        if wait.state in "Dt":
            self.why = "it is in vfork or in an uninterruptible sleep"
            return False
        if wait.call is None:
            return True
        if wait.call not in WAITS:
            self.why = f"it is in system call {wait.call}"
            return wait.state == "R"
        return not self._limit_would_start_anew(tid, wait)

    def _limit_would_start_anew(self, tid: int, wait: Wait) -> bool:
        """A wait with a time limit that the kernel does not continue is taken at its beginning, if it has one in time."""
        if time.monotonic() - self._begun > FRESH_WAIT_S:
            return False
        if not wait.limit_would_start_anew and not has_socket_limit(self.pid, wait):
            return False
        seen = self._fresh.setdefault(tid, wait.switches)
        self.why = "it is in the middle of a wait with a time limit"
        return seen == wait.switches

    def _look(self, tid: int) -> Region | None:
        """Stops the thread once; borrows it if it stands well."""
        if not self._worth_stopping(tid):
            return None
        thread = TracedThread(tid)
        try:
            thread.seize()
        except PermissionError:
            if not (tracer := tracer_of(self.pid, tid)):
                raise
            self.why = f"process {tracer} traces it"  # one like us, whose host was killed; it will soon be done
            return None
        begun = time.perf_counter_ns()
        thread.interrupt(STOP_S)
        self.looks += 1
        held = True
        try:
            found = thread.registers()
            back = begin_again(self.pid, tid, thread, found)
            stack = self._copy_stack(tid, found)
            try:
                self._judge.check(self._unwinder.walk(found, stack, learn=False), found)
                held = False
                return lending.lend(thread, self._memory, self._addresses, self._functions, back)
            except (Unsafe, NoEnd) as error:
                self.why = str(error)
            except StackTooDeep:
                self._stack_bytes[tid] = min(2 * len(stack.data), _STACK_MAX_BYTES)
            except NotKnownYet:
                thread.detach()
                held = False
                self._note(begun)
                self._learn(found, stack)
        finally:
            if held:
                thread.detach()
            self._note(begun)
        return None

    def _note(self, begun_ns: int) -> None:
        self.longest_us = max(self.longest_us, (time.perf_counter_ns() - begun_ns) // 1000)

    def _copy_stack(self, tid: int, registers: Registers) -> StackCopy:
        size = self._stack_bytes.get(tid, _STACK_BYTES)
        return StackCopy(registers["rsp"], self._memory.read_some(registers["rsp"], size))

    def _learn(self, registers: Registers, stack: StackCopy) -> None:
        """Reads the tables that a stack like this needs; the thread runs on."""
        try:
            self._unwinder.walk(registers, stack, learn=True)
        except StackTooDeep:
            self._stack_bytes[self.pid] = min(2 * len(stack.data), _STACK_MAX_BYTES)
        except NoEnd as error:
            self.why = str(error)
            if "in no module" in str(error):
                self._know()  # a library that was loaded since


def _wait_for_standin(pid: int, region: Region) -> int:
    deadline = time.monotonic() + STANDIN_S
    while not region.tid:
        if time.monotonic() > deadline:
            region.command(GONE)  # should it ever run
            wait = Wait.of(pid, pid)
            stopped = wait is not None and wait.state == "T"
            raise Refused(STOPPED) if stopped else lending.CannotLend("the thread that it created does not run")
        time.sleep(0.0002)
    return region.tid


def main() -> None:
    """Does what the module's text says."""
    try:
        arrival = Arrival(int(sys.argv[1]))
        region = arrival.run(float(sys.argv[2]), int(sys.argv[3]))
        if region is None:
            print(f"busy {arrival.why}")
            return
        print("standin", _wait_for_standin(arrival.pid, region), hex(region.address), arrival.looks, arrival.longest_us)
    except (Refused, lending.CannotLend) as error:
        print(f"refused {error}")
    except ThreadGone:
        print("refused it has ended")
    except OSError as error:
        print(f"refused {error.strerror or error}")
