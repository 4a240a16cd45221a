"""What has come into a program and must leave it again after a failure: at once where it can be, else in the background."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

AT_ONCE_SECONDS = 3.0
_pending: set[threading.Thread] = set()


def undo(work: Callable[[], object], seconds: float = AT_ONCE_SECONDS) -> None:
    """Has `work` done on a thread, and waits for it for `seconds`; it goes on then. What it raises is nobody's."""

    def run() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=run, name="undo", daemon=True)
    _pending.add(thread)
    thread.start()
    thread.join(seconds)
    _pending.difference_update([each for each in _pending if not each.is_alive()])


def wait(seconds: float) -> bool:
    """Waits for what is being undone. False: not all of it was within `seconds`."""
    deadline = time.monotonic() + seconds
    for thread in tuple(_pending):
        thread.join(max(deadline - time.monotonic(), 0))
    return not any(thread.is_alive() for thread in _pending)
