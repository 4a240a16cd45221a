"""What the tracked processes fork and execute (`--follow-fork`): seen in the session memory, which both sides share.

A forked child goes on with its parent's hooks and needs nothing, but the reading may not end before it does. A process
that is about to execute a program waits for us to join it.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Protocol

from frida_rtetrack.errors import RtetrackError
from frida_rtetrack.stream.pump import Subscriber
from frida_rtetrack.stream.ring import SessionMemory
from frida_rtetrack.target import execgate


class Told(Protocol):
    """Who is told; may be called from any thread."""

    def forked(self, parent: int, child: int) -> None:
        """Process `parent` forked `child`."""

    def problem(self, text: str) -> None:
        """Something went wrong; the tracking goes on."""


class Offspring(Subscriber):
    """The forked children, and the processes whose next program is being joined."""

    def __init__(
        self, memory: SessionMemory, *, join: Callable[[int], None], told: Told, wake: threading.Event
    ) -> None:
        """`join(pid)` tracks what `pid` executes, which is held before its first instruction. `wake`: see Pump."""
        self._memory = memory
        self._join = join
        self._told = told
        self._wake = wake
        self._children: dict[int, int] = {}  # index in the process table -> pidfd, -1: gone
        self._execs: set[int] = set()  # pids whose next program is being joined
        self._threads: list[threading.Thread] = []

    def on_round(self) -> None:
        """Looks for new ones."""
        self._notice_children()
        self._notice_execs()

    def may_write(self) -> bool:
        """Whether one of them may still write into the session memory."""
        return bool(self._execs) or any(map(_is_alive, self._children.values()))

    def join_threads(self, seconds: float) -> None:
        """Waits for those that are being joined, at most so long for each."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(seconds)
        self._threads.clear()

    def close(self) -> None:
        """Gives the children's descriptors back."""
        for pidfd in self._children.values():
            if pidfd >= 0:
                os.close(pidfd)
        self._children.clear()

    def _notice_children(self) -> None:
        for number in range(self._memory.counter("processes_used")):
            parent, pid = self._memory.parent_pid(number), self._memory.pid(number)
            if number in self._children or parent is None or not pid:
                continue
            try:
                self._children[number] = os.pidfd_open(pid)
            except OSError:  # it has ended already
                self._children[number] = -1
            self._told.forked(parent, pid)

    def _notice_execs(self) -> None:
        for entry, pid in self._memory.waiting_execs():
            self._execs.add(pid)
            thread = threading.Thread(target=self._follow_exec, args=(entry, pid), name=f"follow {pid}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _follow_exec(self, entry: int, pid: int) -> None:
        """Joins the program that `pid` is about to execute, before it begins."""
        try:
            held = execgate.hold(pid, lambda: self._memory.let_exec_go(entry))
            try:
                self._join(pid)
            finally:
                execgate.release(held)
        except (execgate.NotHeld, RtetrackError, OSError) as error:
            self._told.problem(f"The program that process {pid} executes is not followed: {error}")
        finally:
            self._execs.discard(pid)
            self._wake.set()


def _is_alive(pidfd: int) -> bool:
    return pidfd >= 0 and not select.select([pidfd], [], [], 0)[0]
