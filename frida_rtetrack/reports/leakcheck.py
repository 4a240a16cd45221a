"""What a leak check finds in a session, beyond what is live when the program calls rte_eal_cleanup: lost blocks, searched for
once before the program ends, and call sites that grew over the run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from frida_rtetrack.errors import NotLive, RtetrackError
from frida_rtetrack.options import LeakKind
from frida_rtetrack.reports.growth import Growing, growing_json
from frida_rtetrack.reports.lost import LostReport, lost_json
from frida_rtetrack.stream.events import Mark, mark_of
from frida_rtetrack.stream.pump import Subscriber
from frida_rtetrack.tracking.heap import HeapOwner
from frida_rtetrack.tracking.map import TrackingMap

LAST_LOOK_SECONDS = 2.0
HELD_SECONDS = 55.0
"""A little less than END_HELD_LIMIT_NS, native/snapshot.c."""
NEVER_HELD = "The program ended neither by rte_eal_cleanup nor by exit, or was not tracked any more then."


@dataclass(frozen=True, slots=True)
class LeakCheck:
    """The answers, of the kinds that were asked for."""

    kinds: frozenset[LeakKind]
    lost: LostReport | None = None
    """None where it was not asked for, or could not be looked for."""
    growing: tuple[Growing, ...] | None = None
    """Most bytes grown first; None where it was not asked for, or cannot be told."""
    not_told: tuple[str, ...] = ()
    """Why an answer is missing, a sentence each."""

    def as_json(self) -> dict[str, Any]:
        """Of what was asked for; null where it could not be told."""
        found: dict[str, Any] = {}
        if LeakKind.LOST in self.kinds:
            found["lost"] = None if self.lost is None else lost_json(self.lost)
        if LeakKind.GROWING in self.kinds:
            found["growing"] = None if self.growing is None else [growing_json(site) for site in self.growing]
        return found


class HeapUser(Protocol):
    """A process that was tracked, or is."""

    hooks: list[dict[str, str]]
    """Empty: it never had DPDK."""
    cleaned_up: bool

    @property
    def is_tracked(self) -> bool:
        """Whether it is alive, with the agent in it."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls its agent. Raises RtetrackError."""


class LeakChecker(Subscriber):
    """Looks while the session runs. `result` is what it knows by then."""

    def __init__(
        self,
        kinds: Collection[LeakKind],
        tracking: TrackingMap,
        *,
        processes: Callable[[], Sequence[HeapUser]],
        of_event: Callable[[np.void], HeapUser | None],
        owner: Callable[[], HeapOwner],
        search: Callable[[], LostReport],
        growing: Callable[[], Sequence[Growing] | None],
    ) -> None:
        """`processes()`: all that were tracked; `of_event`: the one that wrote a mark, None for a forked child; `owner()`:
        whose the heap is; `search` raises RtetrackError; `growing()`: None where the run was too short to tell.
        """
        self._kinds = frozenset(kinds)
        self._tracking = tracking
        self._processes = processes
        self._of_event = of_event
        self._owner = owner
        self._search = search
        self._growing = growing
        self._lost: LostReport | None = None
        self._why_not_lost = NEVER_HELD
        self._look_lock = threading.Lock()
        self._looks: dict[HeapUser, threading.Thread] = {}
        """Of each process that has waited: it does so once, however many marks say so."""

    # ---- lost

    def on_mark(self, mark: np.void) -> None:
        """A process waits at its end to be looked at."""
        if mark_of(mark)[0] is not Mark.END_HELD or LeakKind.LOST not in self._kinds:
            return
        process = self._of_event(mark)
        if process is not None and process not in self._looks:
            look = threading.Thread(target=self._look_and_let_end, args=(process,), name="last look", daemon=True)
            self._looks[process] = look
            look.start()

    def _look_and_let_end(self, process: HeapUser) -> None:
        try:
            others = [each for each in self._users() if each is not process]
            if process.hooks and not any(each.is_tracked and not each.cleaned_up for each in others):
                self.look(but_for=process)
        finally:
            with contextlib.suppress(RtetrackError):  # it is gone, or its agent is: nobody waits
                process.call("let_end")

    def _users(self) -> list[HeapUser]:
        return [process for process in self._processes() if process.hooks]

    def look(self, but_for: HeapUser | None = None) -> None:
        """Searches now: the last process, `but_for`, is about to end, or all are to be let go.

        What a process held that has ended already would be called lost: then nothing is.
        """
        if LeakKind.LOST not in self._kinds:
            return
        with self._look_lock:
            try:
                if any(not each.is_tracked for each in self._users() if each is not but_for):
                    raise NotLive("Another process that had the heap ended before, and what it held is not known.")
                if self._owner() is HeapOwner.UNSEEN and not self._tracking.totals.allocations:
                    raise NotLive("The process that ended never had a heap of DPDK's.")
                self._lost = self._found(held=but_for is not None)
            except RtetrackError as error:
                self._why_not_lost = str(error)

    def _found(self, *, held: bool) -> LostReport:
        """Raises RtetrackError, also where who has the heap did not stay as long as the search took: what it held is gone."""
        users, begun = [user for user in self._users() if not user.cleaned_up], time.monotonic()
        found = self._search()
        if any(user.cleaned_up or not user.is_tracked for user in users):
            raise NotLive("The program ended while its memory was searched.")
        if held and time.monotonic() - begun > HELD_SECONDS:
            raise NotLive("The search took longer than a program that ends is held for it.")
        return found

    def wait(self) -> None:
        """Until a search that has begun has ended, in a program that is gone."""
        for look in tuple(self._looks.values()):
            look.join(LAST_LOOK_SECONDS)

    # ---- the answer

    def result(self) -> LeakCheck:
        """What was found until now."""
        not_told = []
        growing: tuple[Growing, ...] | None = None
        lost = self._lost
        if self._owner() is HeapOwner.CHILD:
            lost, self._why_not_lost = None, "DPDK's heap is that of a forked child."
        if LeakKind.LOST in self._kinds and lost is None:
            not_told.append(f"Lost blocks could not be looked for. {self._why_not_lost}")
        if LeakKind.GROWING in self._kinds:
            found = self._growing()
            growing = None if found is None else tuple(found)
            if growing is None:
                not_told.append("Whether anything grows cannot be told: the run was too short.")
        return LeakCheck(self._kinds, lost, growing, tuple(not_told))
