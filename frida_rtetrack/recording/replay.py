"""A recorded session judged again: its events go through the parts that judge a live one, and give the same answers."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.errors import NotLive, NotRecorded
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.reports.leakcheck import LeakCheck
from frida_rtetrack.reports.moment import ALL_BLOCKS, Filters, Moment, Run
from frida_rtetrack.reports.often import Often
from frida_rtetrack.reports.summary import CALL_SITES, Summary, summarize
from frida_rtetrack.stream.events import SIZE_BITS, EventBatch, Kind, Times, threads
from frida_rtetrack.symbols.names import Names, Stack
from frida_rtetrack.symbols.symbolizer import Frame
from frida_rtetrack.target.addressspace import AddressSpace
from frida_rtetrack.tracking.badfreelog import BadFrees
from frida_rtetrack.tracking.eal import EalLife
from frida_rtetrack.tracking.heapview import HeapView
from frida_rtetrack.tracking.map import TrackingMap
from frida_rtetrack.tracking.trackedheap import TrackedHeap


class RecordedNames(Names):
    """The names of a recorded session: as they were looked up when it ended, or else from the files of this machine.

    Where the recording's sources name directories, what is in them is added to what was looked up.
    """

    def __init__(self, recording: Recording) -> None:
        """Of `recording`."""
        super().__init__(recording, lambda pid, tid: None, sources=recording.sources)
        self._recording = recording
        if recording.has_frames():
            recording.sources.ask_debuginfod = False

    def stack(self, number: int) -> Stack | None:
        """See Names."""
        if number == 0 or number in self._stacks:
            return self._stacks.get(number)
        frames = self._recording.frames(number)
        if not frames:
            return super().stack(number)
        if self._recording.sources.directories and any(frame.module and not frame.line for frame in frames):
            looked_up = super().stack(number)
            frames = frames if looked_up is None else _best_of(frames, looked_up.frames)
        with self._lock:
            self._remember(number, Stack(frames, self.why_cut(number)))
            return self._stacks[number]

    def _root(self, process: int) -> str:
        return "/"


def _best_of(recorded: tuple[Frame, ...], looked_up: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """For each address, which gives some frames in a row, those that say more."""
    runs = [
        [list(run) for _, run in itertools.groupby(frames, lambda frame: frame.address)]
        for frames in (recorded, looked_up)
    ]
    if [run[0].address for run in runs[0]] != [run[0].address for run in runs[1]]:
        return recorded
    best = (max(pair, key=lambda run: (bool(run[-1].function), bool(run[-1].line))) for pair in zip(*runs, strict=True))
    return tuple(frame for run in best for frame in run)


@dataclass(slots=True)
class _RecordedProcess:
    number: int
    space: AddressSpace
    cleaned_up: bool = False
    is_tracked: bool = True


class _RecordedProcesses:
    def __init__(self, recording: Recording) -> None:
        self.targets = [
            _RecordedProcess(number, AddressSpace(0)) for number, _, argv in recording.processes() if argv is not None
        ]
        self._of_thread = recording.process_of_threads()

    def of_event(self, event: np.void) -> _RecordedProcess | None:
        number = self._of_thread[int(event["size_and_thread"]) >> SIZE_BITS]
        return next((target for target in self.targets if target.number == number), None)

    def processes_of(self, events: EventBatch) -> NDArray[np.uint16]:
        return self._of_thread[threads(events)]

    def child_is_gone(self, number: int) -> bool:
        return False  # what followed from it is an amendment


class Replay:
    """Replays `recording` from its beginning. Ask it when `run` has returned, or while it calls back."""

    def __init__(self, recording: Recording) -> None:
        """Nothing is replayed yet. Raises DamagedRecording."""
        self.recording = recording
        self.names: Names = RecordedNames(recording)
        about = recording.about
        self.start = about.started
        beginning = recording.beginning()
        tracking = TrackingMap() if beginning is None else TrackingMap.begun_at(beginning)
        if beginning is None and not about.begun_complete:
            tracking.mark_incomplete()
        processes = _RecordedProcesses(recording)
        eal = EalLife(tracking, processes, _nothing, decided=about.last_leaves)
        if about.owner is not None:
            eal.owner, eal.init_ranges = about.owner, list(about.init_ranges)
            for target in processes.targets:
                target.cleaned_up = target.number in about.cleaned_up
        view = HeapView(
            tracking,
            _refuse,
            is_ours=lambda mark: processes.of_event(mark) is not None,
            of_owner=eal.is_of_owner,
            owner=lambda: eal.owner,
            lock=threading.RLock(),
            ended=threading.Event(),
            deaf=threading.Event(),
            later=_nothing,
            on_problem=lambda text: None,
        )
        view.inserting = set(about.inserting)
        self.kept = recording.kept() if recording.is_aggregated else None
        """What an aggregated recording has in place of the events."""
        if self.kept is not None:
            eal.at_cleanup = self.kept.at_cleanup
        self.often = Often() if self.kept is None else self.kept.often
        """How often each stack allocated."""
        self.heap = TrackedHeap(tracking, view=view, eal=eal, bad_frees=BadFrees(), on_problem=lambda text: None)
        self.now_ns = self.start.monotonic_ns
        """Up to when it has been replayed, monotonic ns."""
        self.first_ns: int | None = None
        """When the first event happened that is no mark, monotonic ns."""
        self.marks: list[tuple[int, int]] = []
        """The marks that there were (enum mark), and when, monotonic ns."""
        self._amendments = recording.amendments()
        self._position = 0
        self._stops: list[int] = []
        self._on_stop: Callable[[], None] = lambda: None
        self._leak_check: LeakCheck | None = None

    def run(
        self,
        *,
        until_ns: int | None = None,
        until_sequence: int | None = None,
        stops_ns: Sequence[int] = (),
        on_stop: Callable[[], None] = lambda: None,
    ) -> Replay:
        """Replays all of it; or up to the monotonic time `until_ns`; or up to the event that the map calls so.

        At each of `stops_ns`, ascending, `on_stop` is called with the heap as it was then. To be called once. Raises
        NotRecorded where the recording is an aggregated one and anything but its end is asked for.
        """
        if self.recording.is_aggregated:
            if until_ns is not None or until_sequence is not None or stops_ns:
                raise NotRecorded(
                    f"{self.recording.path} was recorded with --aggregate: what was live is known of its end only."
                )
            self.now_ns = self.recording.about.until_ns or self.now_ns
            self._judge_bad_frees(whole=True)
            return self
        self._stops, self._on_stop = list(stops_ns), on_stop
        for _, events, times in self.recording.chunks():
            count = len(events) if until_ns is None else int(np.searchsorted(times, until_ns, side="right"))
            if self._take(events[:count], times[:count], until_sequence) or count < len(events):
                break
        else:
            self._amend(self._position)
        self.now_ns = until_ns if until_ns is not None and until_sequence is None else self.now_ns
        if until_ns is None and until_sequence is None and self.recording.about.until_ns is not None:
            self.now_ns = self.recording.about.until_ns
        while self._stops:
            self._stop()
        self._judge_bad_frees(whole=until_ns is None and until_sequence is None)
        return self

    def _take(self, events: EventBatch, times: Times, until_sequence: int | None) -> bool:
        """Cut at stops, at marks as the pump does, and at amendments. True: `until_sequence` has been reached."""
        at = 0
        marks = np.flatnonzero(events["kind"] == Kind.MARK)
        while at < len(events):
            self._amend(self._position)
            next_mark = int(np.searchsorted(marks, at))
            end = int(marks[next_mark]) + 1 if next_mark < marks.size else len(events)
            if self._amendments:
                end = min(end, at + self._amendments[0][0] - self._position)
            if self._stops:
                end = min(end, max(int(np.searchsorted(times, self._stops[0], side="right")), at))
            if until_sequence is not None:
                end = min(end, at + until_sequence + 1 - self.heap.map.events)
            if end > at:
                self.heap.on_events(events[at:end], self._position, times[at:end])
                self.often.add(events[at:end])
                self._position += end - at
                self.now_ns = int(times[end - 1])
                is_mark = bool(events[end - 1]["kind"] == Kind.MARK)
                if self.first_ns is None and (end - at > 1 or not is_mark):
                    self.first_ns = int(times[at])
                if is_mark:
                    self.marks.append((int(events[end - 1]["api"]), self.now_ns))
                    self.heap.on_mark(events[end - 1])
            elif self._stops:
                self._stop()
            at = end
            if until_sequence is not None and self.heap.map.events > until_sequence:
                return True
        return False

    def _amend(self, position: int) -> None:
        while self._amendments and self._amendments[0][0] <= position:
            self.heap.map.amend(self._amendments.pop(0)[1])

    def _stop(self) -> None:
        self.now_ns = max(self._stops.pop(0), self.now_ns)
        self._on_stop()

    def _judge_bad_frees(self, *, whole: bool) -> None:
        log = self.heap.bad_frees
        reports = self.recording.bad_frees()
        log.reports = reports if whole else [report for report in reports if report.timestamp_ns <= self.now_ns]
        log.not_kept = self.recording.about.bad_frees_not_kept if whole else 0
        log.found = len(log.reports) + log.not_kept
        if whole and self.recording.about.ended:
            self.heap.view.verified = self.recording.about.verified
            self._leak_check = self.recording.about.leak_check

    # ---- answers

    def live(self) -> NDArray[np.void]:
        """The live blocks, BLOCK_DTYPE (n,)."""
        return self.heap.map.live()

    def moment(self, rows: NDArray[np.void] | None = None) -> Moment:
        """The moment up to which it was replayed, with what was live then; or with `rows`, BLOCK_DTYPE (n,), of it."""
        return Moment(self._run(), self.live() if rows is None else rows, self.names, self.now_ns)

    def _run(self) -> Run:
        about = self.recording.about
        argv = next((argv for _, pid, argv in self.recording.processes() if pid == about.pid and argv), ())
        return Run(argv, about.pid, about.host, about.started, about.engine, about.version)

    def summary(self, filters: Filters = ALL_BLOCKS, limit: int = CALL_SITES) -> Summary:
        """What the session's own summary said, or would have said at this moment; of call sites only those of `filters`."""
        about = self.recording.about
        return summarize(
            self.heap,
            self.names,
            start=self.start,
            version=about.version,
            engine=about.engine,
            compiler=about.compiler,
            hooks=about.hooks,
            pid=about.pid,
            argv=self._run().argv,
            ending=about.ending,
            lost=about.lost,
            leak_check=self._leak_check,
            only=None if filters == ALL_BLOCKS else lambda rows: filters.apply(rows, self.names, self.now_ns),
            limit=limit,
        )


def _nothing(what: str, task: Callable[[], None]) -> None:
    """What a live session would do aside is not done again."""


def _refuse(*_: object) -> NoReturn:
    raise NotLive("A recording has no process that could be asked.")
