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
from frida_rtetrack.stream.events import EXECS
from frida_rtetrack.stream.pump import Subscriber
from frida_rtetrack.stream.ring import SessionMemory
from frida_rtetrack.target import execgate
from frida_rtetrack.target.kinship import has_memory


class Told(Protocol):
    """Who is told; may be called from any thread."""

    def forked(self, parent: int, child: int) -> None:
        """Process `parent` forked `child`."""

    def problem(self, text: str) -> None:
        """Something went wrong; the tracking goes on."""


class Offspring(Subscriber):
    """The forked children, and the processes whose next program is being joined."""

    def __init__(
        self,
        memory: SessionMemory,
        *,
        is_ours: Callable[[int], bool],
        join: Callable[[int], None],
        told: Told,
        wake: threading.Event,
    ) -> None:
        """`is_ours(pid)`: whether the kernel says so too, see Kinship; nothing is done to a pid before.

        `join(pid)` tracks what `pid` executes, which is held before its first instruction. `wake`: see Pump.
        """
        self._is_ours = is_ours
        self._memory = memory
        self._join = join
        self._told = told
        self._wake = wake
        self._children: dict[int, int] = {}  # index in the process table -> pidfd, -1: gone
        self._pids: dict[int, int] = {}
        self._execs: set[int] = set()  # pids whose next program is being joined
        self._refused_told = False
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

    def pid(self, number: int) -> int:
        """The pid of the forked child with this index in the process table; 0 where there is none that is known."""
        return self._pids.get(number, 0)

    def living_pids(self) -> list[int]:
        """Of the forked children that are known and have not ended."""
        return [pid for number, pid in self._pids.items() if _is_alive(self._children.get(number, -1))]

    def _notice_children(self) -> None:
        for number in range(self._memory.processes_used()):
            parent, pid = self._memory.parent_pid(number), self._memory.pid(number)
            if number in self._children or parent is None or not pid:
                continue
            self._children[number] = pidfd = _open(pid)
            if pidfd >= 0 and not self._is_ours(pid) and _is_alive(pidfd):
                os.close(pidfd)
                self._children[number] = pidfd = -1
                if has_memory(pid):
                    self._memory.damage.add("processes")
                    continue
            if pidfd >= 0:
                self._pids[number] = pid
            self._told.forked(parent, pid)

    def _notice_execs(self) -> None:
        for entry, pid in self._memory.waiting_execs():
            if pid in self._execs:  # its last program has just begun, and executes the next one: in the next round
                continue
            if len(self._execs) >= EXECS or not self._is_ours(pid):
                self._memory.let_exec_go(entry)
                self._memory.damage.add("processes")
                if not self._refused_told:
                    self._refused_told = True
                    self._told.problem(
                        f"The program that process {pid} executes is not followed: it is none of the tracked ones."
                    )
                continue
            self._memory.take_exec_up(entry)
            self._execs.add(pid)
            thread = threading.Thread(target=self._follow_exec, args=(entry, pid), name=f"follow {pid}", daemon=True)
            self._threads = [known for known in self._threads if known.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _follow_exec(self, entry: int, pid: int) -> None:
        """Joins the program that `pid` is about to execute, before it begins."""
        try:
            held = execgate.hold(pid, lambda: self._let_go(entry, pid))
            try:
                self._join(pid)
            finally:
                execgate.release(held)
        except (execgate.NotHeld, RtetrackError, OSError) as error:
            self._told.problem(f"The program that process {pid} executes is not followed: {error}")
        finally:
            self._execs.discard(pid)
            self._wake.set()

    def _let_go(self, entry: int, pid: int) -> None:
        """Once `pid` is seized: it must be the one that was looked at, not a stranger who got its number since."""
        if not self._is_ours(pid):
            raise execgate.NotHeld("another process has its number now")
        self._memory.let_exec_go(entry)


def _open(pid: int) -> int:
    """A pidfd; -1: the process has ended already."""
    try:
        return os.pidfd_open(pid)
    except (OSError, OverflowError):
        return -1


def _is_alive(pidfd: int) -> bool:
    return pidfd >= 0 and not select.select([pidfd], [], [], 0)[0]
