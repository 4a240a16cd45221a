"""The host's side: has the helper put a stand-in into a program, and sends it away when Frida has left."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import threading
import time
from typing import Any

from frida_rtetrack.errors import ArrivalRefused, NoSafeMoment, TargetEnded
from frida_rtetrack.target import ownprocess
from frida_rtetrack.target.arrival.loadergate import Gate
from frida_rtetrack.target.arrival.modules import Memory
from frida_rtetrack.target.arrival.region import GONE, GUARDED, SETTLED, Region, pages_for_code
from frida_rtetrack.target.arrival.stopwatch import is_stopped, stopped_meanwhile
from frida_rtetrack.target.arrival.threadwatch import ThreadWatch
from frida_rtetrack.target.arrival.waits import tracer_of

AVAILABLE = platform.machine() == "x86_64"
ARRIVAL_S = 10.0
"""For a safe moment to come."""
LEAVE_S = 5.0
"""For a moment to leave at; then Frida's agent stays."""
ANSWER_S = 2.0
FRIDA_GONE_S = 3.0
_HELPER_S = 30.0
_HEARTBEAT_S = 0.25
"""The gate opens by itself after three seconds without one, the stand-in leaves after ten; if Frida is gone by then (standin.S)."""


class StandIn:
    """A thread of ours in a program, for Frida to attach to in place of the program's own.

    It takes the SIGSEGV with which Frida's remote calls end, should nobody be there to catch that, while it is on guard:
    from its beginning until `settle`, and from `guard` until `dismiss`. It leaves by itself when this process ends.
    """

    def __init__(self, pid: int, tid: int, address: int) -> None:
        """Use `arrive`."""
        self.pid = pid
        self.tid = tid
        self._region = Region(Memory(pid), address)
        self._gate = Gate(self._region)
        self._fridas = frozenset[int]()
        self._arrival: ThreadWatch | None = None
        self._before = pages_for_code(pid)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._beater = threading.Thread(target=self._beat, name="stand-in", daemon=True)
        self._beater.start()

    @classmethod
    def arrive(cls, pid: int, seconds: float = ARRIVAL_S) -> StandIn:
        """Puts one into process `pid`. Raises NoSafeMoment, ArrivalRefused or TargetEnded; the program is as before then."""
        command = ownprocess.command("frida_rtetrack.target.arrival.helper", pid, seconds, os.getpid())
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_HELPER_S)
        words = said.stdout.split()
        if words[:1] == ["standin"]:
            return cls(pid, int(words[1]), int(words[2], 16))
        why = " ".join(words[1:]) or said.stderr.strip().rpartition("\n")[2]
        if not os.path.isdir(f"/proc/{pid}"):
            raise TargetEnded(f"Process {pid} ended while it was being attached to.")
        if words[:1] == ["busy"]:
            raise NoSafeMoment(
                f"No safe moment to come into process {pid} was found within {seconds:.0f} seconds (last seen: {why}). "
                f"It was left as it is."
            )
        if is_stopped(pid):
            raise stopped_meanwhile(pid)
        raise ArrivalRefused(f"Process {pid} cannot be come into: {why}. It was left as it is.")

    def _beat(self) -> None:
        number = 1
        while not self._over.wait(_HEARTBEAT_S):
            number += 1
            try:
                with self._lock:
                    if not self._over.is_set():
                        self._region.beat(number)
            except OSError:
                return

    def close_gate(self) -> None:
        """No thread of the program loads or unloads a library or forks until `settle` or `dismiss`. Raises NoSafeMoment."""
        try:
            self._gate.close()
        except OSError:
            raise TargetEnded(f"Process {self.pid} ended while it was being attached to.") from None

    def gate_for_agent(self) -> dict[str, Any] | None:
        """The gate, for the agent to close if it must leave without us; None where the program has ended."""
        try:
            return self._gate.for_agent()
        except OSError:
            return None

    def expect_frida(self) -> None:
        """Frida is about to come: from the first moment on the program is to know by which thread. Raises TargetEnded."""
        try:
            self._arrival = ThreadWatch(self.pid, self.tid, self._tell_of_frida)
        except OSError:
            raise TargetEnded(f"Process {self.pid} ended while it was being attached to.") from None

    def _tell_of_frida(self, tid: int) -> None:
        with contextlib.suppress(OSError):
            self._region.note_frida(tid)

    def note_frida(self) -> None:
        """Frida has just come, and nothing else: what it has mapped is to be gone before the stand-in goes."""
        self._end_arrival()
        self._fridas = pages_for_code(self.pid) - self._before

    def _end_arrival(self) -> None:
        if self._arrival is not None:
            self._arrival.finish()

    def is_held(self) -> bool:
        """Whether somebody traces it."""
        try:
            return tracer_of(self.pid, self.tid) != 0
        except OSError:
            return False

    def settle(self) -> None:
        """The agent is at work: nothing will happen to the stand-in until it leaves."""
        self._open_gate()
        self._become(SETTLED)

    def guard(self) -> None:
        """Frida is about to leave. Raises NoSafeMoment: a thread has been loading a library or forking all the time."""
        self._become(GUARDED)
        deadline = time.monotonic() + LEAVE_S
        while True:
            try:
                self._gate.close()
                return
            except NoSafeMoment:
                if time.monotonic() > deadline:
                    raise
            except OSError:
                return  # the program has ended

    def _open_gate(self) -> None:
        try:
            self._gate.open()
        except OSError:
            pass  # the program has ended

    def _become(self, state: int) -> None:
        try:
            self._region.command(state)
            deadline = time.monotonic() + ANSWER_S
            while self._region.state != state and time.monotonic() < deadline:
                time.sleep(0.002)
        except OSError:
            pass  # it has ended, or the program has

    def dismiss(self, *, frida_was_here: bool) -> None:
        """Sends it away, once Frida has given back what it had mapped through it. Nothing of it remains."""
        self._end_arrival()
        deadline = time.monotonic() + FRIDA_GONE_S
        if frida_was_here:
            while self._fridas & pages_for_code(self.pid) and time.monotonic() < deadline:
                time.sleep(0.005)
        self._open_gate()
        try:
            self._gate.release()
            with self._lock:
                self._over.set()
                self._region.command(GONE)
            while os.path.isdir(f"/proc/{self.pid}/task/{self.tid}") and time.monotonic() < deadline:
                time.sleep(0.002)
        except OSError:
            pass
        self._beater.join(ANSWER_S)
        self._region.memory.close()
