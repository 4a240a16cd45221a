"""That signals end the command in time, whatever the program, Frida or the terminal do meanwhile."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_SECONDS = 0.05


class SignalWatch:
    """Counts the signals that ask to end, also while the main thread is in a call that hears of none.

    Python hands a signal to its handler only between two steps of the main thread; its number is written to a pipe at
    once (`signal.set_wakeup_fd`), or, where an event loop has taken that over, by `note`.
    """

    def __init__(self, patience: Callable[[int], float | None], give_up: Callable[[int], None]) -> None:
        """`patience(n)`: seconds after the n-th signal when `give_up(number)` is called, on a thread; None: not for it."""
        self._patience = patience
        self._give_up = give_up
        self._reading, self._writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._noted = 0
        self._number = int(signal.SIGTERM)
        self._over = threading.Event()
        self._before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()

    def note(self, number: int) -> None:
        """A handler has heard of one of ENDING."""
        self._noted += 1
        self._number = number
        self._wake()

    def stop(self) -> None:
        """Everything is done: nothing is to be given up any more."""
        signal.set_wakeup_fd(self._before)
        self._over.set()
        self._wake()
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full: the thread is awake
            os.write(self._writing, b"\0")

    def _watch(self) -> None:
        came = seen = 0
        since = 0.0
        while not self._over.is_set():
            if select.select([self._reading], [], [], LOOK_SECONDS if seen else None)[0]:
                for number in os.read(self._reading, 4096):
                    if number in ENDING:
                        came += 1
                        self._number = number
            if max(came, self._noted) > seen:
                seen, since = max(came, self._noted), time.monotonic()
            patience = self._patience(seen) if seen else None
            if patience is not None and time.monotonic() - since >= patience:
                self._give_up(self._number)
                return
