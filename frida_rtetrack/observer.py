"""Observer: who is told what happens to a target while it happens. The reporters are observers, and so may a script be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from frida_rtetrack.target.target import Ending
from frida_rtetrack.tracking.badfree import BadFreeReport


class Observer:
    """What happens to a target, told on the host's threads. Override what is of interest; do not block for long."""

    def step(self, what: str) -> None:
        """What the host has begun to do to come into the program, as a phrase; some take their time."""

    def hooked(self, hooks: list[dict[str, str]]) -> None:
        """DPDK was found in a module and its functions are hooked ({function, module, address, how} each)."""

    def bad_free(self, report: BadFreeReport) -> None:
        """The program freed what it must not."""

    def dumped(self, path: Path, blocks: int, why: str) -> None:
        """The dump file was written."""

    def forked(self, parent: int, child: int) -> None:
        """Process `parent` forked `child`, which is tracked too (`follow_fork`)."""

    def problem(self, text: str) -> None:
        """Something went wrong; the tracking goes on."""

    def output(self, data: bytes) -> None:
        """The program wrote to its terminal (only where the host holds it)."""

    def ended(self, ending: Ending) -> None:
        """The target is gone or was let go, and everything it recorded has been read."""


class QueuedObserver:
    """Tells an observer by way of the slow work: for those on the way of the events, or on a thread of Frida's."""

    def __init__(self, observer: Observer, later: Callable[[str, Callable[[], None]], None]) -> None:
        """`later(what, task)` has `task` run, in turn and on another thread."""
        self._observer = observer
        self._later = later

    def hooked(self, hooks: list[dict[str, str]]) -> None:
        """See Observer."""
        self._later("hooked", lambda: self._observer.hooked(hooks))

    def forked(self, parent: int, child: int) -> None:
        """See Observer."""
        self._later("forked", lambda: self._observer.forked(parent, child))

    def problem(self, text: str) -> None:
        """See Observer."""
        self._later("problem", lambda: self._observer.problem(text))
