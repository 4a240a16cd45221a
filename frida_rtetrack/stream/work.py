"""The slow work of a session, off the way of the events: one task after the other, in the order they were given.

It knows nothing of what the tasks do.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

Task = Callable[[], None]


class WorkQueue:
    """Tasks and the thread that does them. A task that raises does not keep the next one from being done."""

    def __init__(self, on_failure: Callable[[str, Exception], None]) -> None:
        """`on_failure(what, error)`: a task raised."""
        self._on_failure = on_failure
        self._tasks: queue.Queue[tuple[str, Task, bool]] = queue.Queue()
        self._thread = threading.Thread(target=self._do_work, name="do_work", daemon=True)

    def start(self) -> None:
        """Starts to work; what was put before is done first."""
        self._thread.start()

    def put(self, what: str, task: Task) -> None:
        """Has `task` done after everything that was put before; `what` names it where it fails."""
        self._tasks.put((what, task, False))

    def finish(self, what: str, task: Task) -> None:
        """Has `task` done as the last one: whatever is put later is not done any more."""
        self._tasks.put((what, task, True))

    def flush(self, deadline: float) -> None:
        """Waits until everything that was put before has been done, or the last task, or until `deadline` (monotonic)."""
        done = threading.Event()
        self.put("sync", done.set)
        while not done.wait(0.02) and self._thread.is_alive() and time.monotonic() < deadline:
            pass

    def join(self, seconds: float) -> None:
        """Waits for the last task's end; not where the caller is itself a task."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def _do_work(self) -> None:
        last = False
        while not last:
            what, task, last = self._tasks.get()
            try:
                task()
            except Exception as error:  # an observer's mistake must not end the tracking
                self._report(what, error)

    def _report(self, what: str, error: Exception) -> None:
        try:
            self._on_failure(what, error)
        except Exception:  # nobody is left to tell
            pass
