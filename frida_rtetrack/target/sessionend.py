"""Whether a session is over, or is to be left: what everybody waits for."""

from __future__ import annotations

import threading
import time

POLL_SECONDS = 0.1


class SessionEnd:
    """Over: everything has been read and reported. Left: the user wishes to wait no longer, from a signal handler even."""

    def __init__(self) -> None:
        """Neither."""
        self.over = threading.Event()
        self.left = threading.Event()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until it is over. False: not within `seconds`, or it was left before.

        Nobody sleeps on `left`: a signal handler that sets it might interrupt that very thread, with the lock taken.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.over.wait(POLL_SECONDS if deadline is None else _at_most(deadline - time.monotonic())):
            if self.left.is_set() or (deadline is not None and time.monotonic() >= deadline):
                return False
        return True


def _at_most(seconds: float) -> float:
    return max(0.0, min(POLL_SECONDS, seconds))
