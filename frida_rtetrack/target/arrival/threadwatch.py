"""Which thread of a program Frida's agent is in the hands of: the first one that the stand-in creates, or has created for it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

LOOK_S = 0.002
_PAUSES_PER_LOOK = 4
"""Of a program with thousands of threads the list is long: no more than a fifth of the time goes into looking."""
_SIGCANCEL = 1 << 32 - 1
"""Which the C library unblocks in every thread that it creates."""


class ThreadWatch:
    """Tells of the first new thread of a process that blocks the same signals as the one that creates it, which it inherits."""

    def __init__(self, pid: int, creator: int, on_found: Callable[[int], None]) -> None:
        """Begins. `on_found` is called with its id, on a thread of ours. Raises OSError where the creator has ended."""
        self._pid, self._on_found = pid, on_found
        self._blocked = self._blocks(creator)
        self._known = set(self._tasks())
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="thread watch", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        pause = LOOK_S
        while not self._over.wait(pause):
            begun = time.monotonic()
            try:
                new = self._tasks() - self._known  # looked at each time: one begins with all signals blocked
            except OSError:
                return  # the process has ended
            for tid in new:
                with contextlib.suppress(OSError):  # the thread has
                    if self._blocks(tid) == self._blocked:
                        self._on_found(tid)
                        return
            pause = max(LOOK_S, _PAUSES_PER_LOOK * (time.monotonic() - begun))

    def _tasks(self) -> set[int]:
        return {int(name) for name in os.listdir(f"/proc/{self._pid}/task")}

    def _blocks(self, tid: int) -> int:
        """As a bit each."""
        with open(f"/proc/{self._pid}/task/{tid}/status", errors="replace") as file:
            line = next((line for line in file if line.startswith("SigBlk:")), "SigBlk: 0")
        return int(line.split()[1], 16) & ~_SIGCANCEL

    def finish(self) -> None:
        """It is there, or will not be."""
        self._over.set()
        self._watcher.join()
