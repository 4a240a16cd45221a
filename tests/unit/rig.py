"""A session put together as the host does it, over a session memory that a test writes: no target, no Frida."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from written import PATIENCE_SECONDS, WrittenSession, mark

from frida_rtetrack.observer import Observer
from frida_rtetrack.options import Options
from frida_rtetrack.reports.summary import Start
from frida_rtetrack.session import Session, put_together
from frida_rtetrack.stream.events import SIZE_BITS, EventBatch, Mark
from frida_rtetrack.stream.work import WorkQueue
from frida_rtetrack.target.addressspace import AddressSpace
from frida_rtetrack.target.group import TargetGroup
from frida_rtetrack.tracking.badfree import BadFreeReport
from frida_rtetrack.tracking.map import TrackingMap


class Told(Observer):
    def __init__(self) -> None:
        self.reports: list[BadFreeReport] = []
        self.problems: list[str] = []
        self.dumps: list[tuple[int, str]] = []

    def bad_free(self, report: BadFreeReport) -> None:
        self.reports.append(report)

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def dumped(self, path: Path, blocks: int, why: str) -> None:
        self.dumps.append((blocks, why))


class Processes:
    """Targets 0 and 1 of a session (threads 1 and 2); whatever else writes is a forked child."""

    def __init__(self, session: WrittenSession) -> None:
        self.memory = session.memory
        self.targets = [
            SimpleNamespace(
                number=number,
                is_tracked=True,
                cleaned_up=False,
                space=AddressSpace(os.getpid()),
                pid=4000 + number,
                argv=("program", str(number)),
            )
            for number in (0, 1)
        ]
        self.first = self.targets[0]
        self.writing = True
        self.gone: set[int] = set()
        self.answer: Callable[[int], int | None] = lambda number: None

    def thread_alive(self, number: int, tid: int) -> bool:
        return False

    def anybody_writes(self) -> bool:
        return self.writing

    def pid_of(self, number: int) -> int:
        return self.memory.pid(number)

    def of_thread(self, number: int) -> Any:
        process = self.memory.thread(number).process
        return next((target for target in self.targets if target.number == process), None)

    def of_event(self, event: np.void) -> Any:
        return self.of_thread(int(event["size_and_thread"]) >> SIZE_BITS)

    def processes_of(self, events: EventBatch) -> Any:
        return self.memory.processes_of_threads((events["size_and_thread"] >> np.uint64(SIZE_BITS)).astype(np.uint32))

    def child_is_gone(self, number: int) -> bool:
        return number in self.gone

    def refresh_spaces(self) -> None:
        pass

    def ask(self, method: str, number: int) -> int | None:
        assert method == "snapshot"
        return self.answer(number)


class Rig:
    """A session put together as the host does it, over a memory that the test writes."""

    def __init__(self, folder: Path, record: Path | None = None, **options: Any) -> None:
        self.written = WrittenSession()
        self.written.set_thread(3, 7)  # of a forked child
        self.processes = Processes(self.written)
        self.told = Told()
        self.over = threading.Event()
        self.map = TrackingMap()
        self.dump_path = folder / "dump.csv"
        self.wake = threading.Event()
        self.work = WorkQueue(lambda what, error: self.told.problem(f"{what} failed: {error!r}"))
        self.session: Session = put_together(
            cast(TargetGroup, self.processes),
            self.map,
            Options(dump_path=self.dump_path, record=record, **options),
            self.told,
            self.work,
            wake=self.wake,
            on_end=lambda: self.work.finish("conclude", self.over.set),
        )
        self.heap = self.session.heap
        self.start = Start.now()
        if self.session.recorder is not None:
            self.session.recorder.begin(dict, started=self.start)
        self.session.pump.start()
        self.work.start()

    def write(self, *events: np.void) -> None:
        """Writes events, and waits until they have been taken and the work that they made is done."""
        self.written.write(*events)
        self.sync()

    def sync(self) -> None:
        self.session.pump.sync(time.monotonic() + PATIENCE_SECONDS)
        self.work.flush(time.monotonic() + PATIENCE_SECONDS)

    def end(self) -> None:
        self.processes.writing = False
        self.wake.set()
        assert self.over.wait(PATIENCE_SECONDS)
        self.session.pump.join(PATIENCE_SECONDS)

    def answer(self, *blocks: np.void, during: tuple[np.void, ...] = ()) -> None:
        """DPDK's heap is going to have `blocks`, while the program does what `during` says."""

        def snapshot(number: int) -> int:
            self.written.write(
                *(mark(Mark.BASELINE_STARTED, number), mark(Mark.HEAP_SNAPSHOT, number)),
                *(*during, *blocks, mark(Mark.BASELINE_ENDED, number)),
            )
            return len(blocks)

        self.processes.answer = snapshot

    def live(self) -> set[int]:
        return set(self.map.live()["address"].tolist())
