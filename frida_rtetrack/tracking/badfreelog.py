"""The bad frees of a session: what the tracking finds becomes reports here, off the way of the events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from frida_rtetrack.symbols.names import Names
from frida_rtetrack.target.target import Target
from frida_rtetrack.tracking import badfree
from frida_rtetrack.tracking.badfree import BadFreeReport, Circumstances
from frida_rtetrack.tracking.map import BadFree

BAD_FREES_KEPT = 100_000


class Processes(Protocol):
    """In whose memory the addresses lie."""

    @property
    def first(self) -> Target:
        """The target that stands for its forked children too."""

    def of_thread(self, number: int) -> Target | None:
        """The target of the thread that events call `number`; None for a forked child."""

    def refresh_spaces(self) -> None:
        """Learns anew what is mapped where."""


class BadFrees:
    """The bad frees of a session. By itself it takes none in: they were judged before, as those of a recording."""

    def __init__(self) -> None:
        """None so far."""
        self.reports: list[BadFreeReport] = []
        self.not_kept = 0
        """How many there were beside `reports`."""
        self.found = 0
        """How many there were, those included that no report has been made of yet."""

    def add(self, found: Sequence[BadFree], around: Sequence[Circumstances], others: tuple[int, ...] = ()) -> None:
        """Takes bad frees (n,) and what was known around each (n,). `others`: processes that share the heap, untracked."""


class BadFreeLog(BadFrees):
    """Every bad free counts; the first BAD_FREES_KEPT are kept as reports, in the order in which they happened."""

    def __init__(
        self,
        names: Names,
        processes: Processes,
        *,
        later: Callable[[str, Callable[[], None]], None],
        on_report: Callable[[BadFreeReport], None],
    ) -> None:
        """`later(what, task)` has a task run off the way of the events; there `on_report` is called."""
        super().__init__()
        self._names = names
        self._processes = processes
        self._later = later
        self._on_report = on_report

    def add(self, found: Sequence[BadFree], around: Sequence[Circumstances], others: tuple[int, ...] = ()) -> None:
        """Has reports made of them."""
        room = max(BAD_FREES_KEPT - self.found, 0)
        self.found += len(found)
        self.not_kept += max(len(found) - room, 0)
        kept = found[:room]
        if kept:
            self._later("bad_frees", lambda: self._explain(kept, around[:room], others))

    def _explain(self, found: Sequence[BadFree], around: Sequence[Circumstances], others: tuple[int, ...]) -> None:
        self._processes.refresh_spaces()
        for each, circumstances in zip(found, around, strict=True):
            target = self._processes.of_thread(each.thread) or self._processes.first
            circumstances = replace(circumstances, others=others)
            report = badfree.explain(len(self.reports) + 1, each, circumstances, self._names, target)
            self.reports.append(report)
            self._on_report(report)
