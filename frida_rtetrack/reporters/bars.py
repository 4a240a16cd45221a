"""Progress bars, by rich, for whatever takes longer than a second: on standard error, and only where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from frida_rtetrack import progress
from frida_rtetrack.reporters.colour import Colours

AFTER_SECONDS = 1.0
ALMOST_DONE = 0.9
"""What is as far as that after so long needs no bar any more."""


class _Screen(Console):
    """A terminal that keeps its cursor: nobody would give it back where a signal ends us."""

    def show_cursor(self, show: bool = True) -> bool:
        """Leaves it as it is."""
        return False


@dataclass(slots=True)
class _Work:
    begun: float
    done: int = 0
    task: TaskID | None = None


class Bars:
    """A bar for each work that is told of, once it has taken a second; gone when it is done."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self._works: dict[str, _Work] = {}
        self._progress: Progress | None = None
        self._lock = threading.RLock()
        self._hidden = 0

    def told(self, what: str, done: int, total: int) -> None:
        """See progress.Listener."""
        with self._lock:
            work = self._works.setdefault(what, _Work(time.monotonic()))
            if done < work.done:  # it is done once more
                self._end(what)
                work = self._works[what] = _Work(time.monotonic())
            work.done = done
            if done >= total:
                self._end(what)
            elif self._hidden:
                pass
            elif work.task is not None and self._progress is not None:
                self._progress.update(work.task, completed=done, total=total)
            elif time.monotonic() - work.begun >= AFTER_SECONDS and done < ALMOST_DONE * total:
                work.task = self._shown().add_task(what, completed=done, total=total)

    def _shown(self) -> Progress:
        if self._progress is None:
            screen = _Screen(stderr=True, no_color=True if Colours.when == "never" else None)
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=screen, transient=True, redirect_stdout=False)
            self._progress.start()
        return self._progress

    def _end(self, what: str) -> None:
        work = self._works.pop(what, None)
        if work is not None and work.task is not None and self._progress is not None:
            self._progress.remove_task(work.task)
            if not self._progress.tasks:
                self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        for work in self._works.values():
            work.task = None

    def stop(self) -> None:
        """Takes away what is shown."""
        with self._lock:
            self._stop()

    def hide(self) -> None:
        """Shows none any more."""
        with self._lock:
            self._hidden += 1
            self._stop()

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Shows none meanwhile: the terminal is somebody else's."""
        self.hide()
        try:
            yield
        finally:
            with self._lock:
                self._hidden -= 1


BARS = Bars()
"""Those of this command."""


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Shows bars while the block runs, where standard error is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with progress.told_to(BARS.told):
        try:
            yield
        finally:
            BARS.stop()
