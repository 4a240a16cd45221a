"""How the parts of a session are put together: who reads the events, in which order, and who tells whom.

A new consumer of events (a recording, a check, a view) is made and subscribed here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from frida_rtetrack.observer import Observer, QueuedObserver
from frida_rtetrack.options import Options
from frida_rtetrack.recording.recorder import Recorder
from frida_rtetrack.reports.dumper import Dumper
from frida_rtetrack.reports.growth import GrowthWatch
from frida_rtetrack.reports.stats import StatsTaker
from frida_rtetrack.stream.pump import Pump
from frida_rtetrack.stream.work import WorkQueue
from frida_rtetrack.symbols.names import Names
from frida_rtetrack.target import process
from frida_rtetrack.target.group import TargetGroup
from frida_rtetrack.tracking.badfreelog import BadFreeLog
from frida_rtetrack.tracking.eal import EalLife
from frida_rtetrack.tracking.heapview import HeapView
from frida_rtetrack.tracking.map import TrackingMap
from frida_rtetrack.tracking.trackedheap import TrackedHeap


@dataclass(frozen=True, slots=True)
class Session:
    """The parts that live as long as the session memory does."""

    names: Names
    pump: Pump
    heap: TrackedHeap
    dumper: Dumper
    stats: StatsTaker
    growth: GrowthWatch
    make_recorder: Callable[[Path, bool], Recorder]
    """(path, force): a recorder of this session, into a new file. Raises BadUsage."""
    recorder: Recorder | None
    """The one that the options ask for."""


def put_together(
    group: TargetGroup,
    tracking: TrackingMap,
    options: Options,
    observer: Observer,
    work: WorkQueue,
    *,
    wake: threading.Event,
    on_end: Callable[[], None],
) -> Session:
    """The parts that read `group`'s session memory, nothing of it started yet. `on_end`: when all of it has been read.

    Raises BadUsage where the recording cannot be made.
    """
    told = QueuedObserver(observer, work.put)
    names = Names(group.memory, process.thread_name, group.pid_of)
    pump = Pump(
        group.memory,
        thread_alive=group.thread_alive,
        anybody_writes=group.anybody_writes,
        wake=wake,
        on_problem=told.problem,
        on_end=on_end,
    )
    eal = EalLife(tracking, group, work.put)
    heap = TrackedHeap(
        tracking,
        view=HeapView(
            tracking,
            group.ask,
            is_ours=lambda mark: group.of_event(mark) is not None,
            of_owner=lambda mark: eal.is_of_owner(mark),
            owner=lambda: eal.owner,
            lock=pump.lock,
            ended=pump.ended,
            deaf=pump.deaf,
            later=work.put,
            on_problem=observer.problem,
        ),
        eal=eal,
        bad_frees=BadFreeLog(names, group, later=work.put, on_report=observer.bad_free),
        on_problem=told.problem,
    )
    dumper = Dumper(
        heap,
        names,
        path=options.dump_path,
        on_bad_free=options.dump_on_bad_free,
        later=work.put,
        observer=observer,
    )
    growth = GrowthWatch(tracking)
    pump.subscribe(heap, dumper, growth)
    if options.follow_fork:
        pump.subscribe(group.offspring)

    def make_recorder(path: Path, force: bool) -> Recorder:
        return Recorder(
            path,
            group.memory,
            names,
            heap,
            group,
            on_problem=told.problem,
            force=force,
            aggregate_seconds=options.record_aggregate_seconds,
            max_bytes=options.record_max_bytes,
        )

    recorder = None
    if options.record is not None:
        recorder = make_recorder(options.record, options.record_over)
        pump.subscribe(recorder)
    return Session(names, pump, heap, dumper, StatsTaker(heap, names), growth, make_recorder, recorder)
