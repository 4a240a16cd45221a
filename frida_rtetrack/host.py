"""Host: one tracked session, from spawn or attach to its end.

The face of it: what a script, the prompt and the command line see. It puts the parts together and hands on; what they
do is theirs. It prints nothing: what happens is told to an Observer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from frida_rtetrack.control import Control
from frida_rtetrack.errors import AgentStays, BadUsage, NotLive, RtetrackError, naming_what_ran_out
from frida_rtetrack.inspection import Inspection
from frida_rtetrack.observer import Observer, QueuedObserver
from frida_rtetrack.options import DEFAULT_DUMP_PATH, ENGINES, MAX_FRAMES, Options
from frida_rtetrack.questions import SYNC_SECONDS, VERSION, Questions
from frida_rtetrack.recording import file as recording_file
from frida_rtetrack.recording.keeper import RecordingKeeper
from frida_rtetrack.reports.stats import Stats
from frida_rtetrack.reports.summary import Start
from frida_rtetrack.reports.unsaid import at_the_end as unsaid_at_the_end
from frida_rtetrack.session import Session, put_together
from frida_rtetrack.stream.work import WorkQueue
from frida_rtetrack.symbols import dpdk
from frida_rtetrack.target import obstacles, process, undoing
from frida_rtetrack.target.agentoptions import (
    check_is,
    check_options,
    check_seconds,
    check_terminal,
    checked_list,
    path_of,
)
from frida_rtetrack.target.group import TargetGroup
from frida_rtetrack.target.launch import launch
from frida_rtetrack.target.sessionend import SessionEnd
from frida_rtetrack.target.target import UNLOAD_SECONDS, Ending, Target
from frida_rtetrack.tracking.map import TrackingMap

__all__ = ["DEFAULT_DUMP_PATH", "ENGINES", "MAX_FRAMES", "VERSION", "Host", "Observer", "Options", "Stats"]


class Host(Questions, Control):
    """A target under tracking. Make one with `Host.spawn` or `Host.attach`; use it as a context manager.

    >>> with Host.attach(4711) as host:
    ...     host.wait(10)
    ...     host.dump("/tmp/dump.txt")
    """

    def __init__(self, options: Options, observer: Observer | None = None) -> None:
        """Use `spawn` or `attach`."""
        check_options(options)
        check_is("observer", observer or Observer(), Observer)
        options = replace(options, dump_path=Path(options.dump_path), record=options.record and Path(options.record))
        obstacles.check_own_limits()
        if options.record is not None:
            recording_file.check(options.record, force=options.record_over)
        recording_file.check_limit(options.record_max_bytes)
        self.options = options
        self.observer = observer or Observer()
        self.tracking = TrackingMap()
        self.paused = False
        self.ending: Ending | None = None
        self._begun = False
        self._detaching = False
        self._end = SessionEnd()
        self._wake = threading.Event()
        self._work = WorkQueue(lambda what, error: self.observer.problem(f"Handling of {what} failed: {error!r}."))
        self._told = QueuedObserver(self.observer, self._work.put)
        self._group = TargetGroup(
            options, symbols_of=dpdk.symbols_of, wanted=dpdk.NEEDED, told=self._told, wake=self._wake
        )
        self._session: Session
        self._start: Start

    def __getattr__(self, name: str) -> Any:
        """Of a Host that `spawn` or `attach` has not made, nothing can be asked. Raises NotLive, AttributeError."""
        if name in ("_session", "_start", "_inspection", "_recordings"):
            raise NotLive("Nothing is tracked yet.", "Host.spawn or Host.attach makes a Host that tracks.")
        raise AttributeError(name)

    # ---- beginning ----

    @classmethod
    @naming_what_ran_out()
    def spawn(
        cls,
        argv: Sequence[str | os.PathLike[str]],
        options: Options | None = None,
        observer: Observer | None = None,
        *,
        terminal: int | None = None,
        also_attach: Sequence[int | str] = (),
        resume: bool = True,
    ) -> Host:
        """Starts the program `argv[0]` with the arguments `argv[1:]`, tracked from before its first instruction.

        `terminal`: a terminal's descriptor to be the program's standard streams, instead of the caller's. With
        `resume=False` the program waits for `resume()`. `also_attach`: running processes that share its DPDK heap.
        Raises RtetrackError.
        """
        argv = process.argument_list(argv)
        if not argv:
            raise BadUsage("No program was named to start.")
        check_terminal(terminal)
        host = cls(options or Options(), observer)
        dpdk.parse_symbols(host.options.symbols)
        path = process.find_program(argv[0])
        sharing = [process.find_process(str(other)) for other in checked_list("processes", also_attach, int, str)]
        for pid in sharing:
            obstacles.check(pid, host.options.buffer_mib, host.observer.problem)
        host.observer.step(f"starting {argv[0]}")
        gated = launch(path, argv, terminal=terminal, keep_orphans=host.options.follow_fork)
        try:
            host._begin(Target.launched(gated, argv))
            if sharing:
                with host._session.pump.lock:
                    host.tracking.mark_incomplete()
                host._join_all(sharing, sharing)
        except BaseException:
            gated.kill()
            host.close()
            raise
        if resume:
            host.resume()
        return host

    @classmethod
    @naming_what_ran_out()
    def attach(
        cls,
        target: int | str | Sequence[int | str],
        options: Options | None = None,
        observer: Observer | None = None,
    ) -> Host:
        """Joins the running process `target`, a pid or a name, or several that share one DPDK heap. Raises RtetrackError."""
        host = cls(options or Options(), observer)
        dpdk.parse_symbols(host.options.symbols)
        pids = process.find_processes(target)
        host.tracking.mark_incomplete()
        host._group.hold_hooks()
        try:
            obstacles.check(pids[0], host.options.buffer_mib, host.observer.problem)
            dpdk.check_init(pids[0], host.options)
            host.observer.step(f"coming into process {pids[0]} at a moment that does it no harm")
            host._begin(Target.attach(pids[0]))
            host._join_all(pids[1:], pids)
        except BaseException:
            host._begun = False
            undoing.undo(host.close)
            raise
        host._group.tell_hooks()
        return host

    def _join_all(self, pids: Sequence[int], running: Sequence[int]) -> None:
        """Tracks `pids` too, and takes in what already lives in the heap of the `running` ones, which are tracked then."""
        for pid in pids:
            self.observer.step(f"coming into process {pid} at a moment that does it no harm")
            self.join(pid)
        self._group.check_dpdk_was_found()
        self.observer.step("reading what lives in DPDK's heap")
        self._group.look()
        self._session.heap.view.sharing_untracked = process.sharing_the_heap(running)
        self._group.wait_for_calls_under_way()
        self.baseline()

    def join(self, pid: int | str) -> None:
        """Tracks the running process `pid` too; it shares the DPDK heap of the one that is tracked already."""
        [name] = checked_list("processes", [pid], int, str)
        number = process.find_process(str(name))
        obstacles.check(number, self.options.buffer_mib, self.observer.problem)
        self._group.add(Target.attach(number))

    def _begin(self, target: Target) -> None:
        """Makes the session in the first target, and begins to read before anything is written."""
        self._start = Start.now()
        self.observer.step("finding DPDK's functions, and the tables that stacks are read by")
        self._group.open_session(target)
        self._session = put_together(
            self._group,
            self.tracking,
            self.options,
            self.observer,
            self._work,
            wake=self._wake,
            on_end=lambda: self._work.finish("conclude", self._finish),
        )
        self._inspection = Inspection(
            self._group,
            self._session,
            sync=lambda: self._session.pump.sync(time.monotonic() + SYNC_SECONDS),
            later=self._work.put,
            leak_check=self.options.leak_check,
        )
        self._session.pump.subscribe(*self._inspection.subscribers)
        self._recordings = RecordingKeeper(
            self._session.make_recorder,
            self._session.pump,
            self._session.heap.view,
            state=self._state,
            keep_findings_in=self._inspection.keep_in,
            names=self.options.record_names,
            started=self._start,
            version=VERSION,
        )
        self._take_note_of_symbols(target.pid)
        self._session.dumper.check()
        if self._session.recorder is not None:
            self._recordings.begin(self._session.recorder)
        self._session.pump.start()
        self._work.start()
        self._group.start_first()
        if target.gated is None and (wrong := self.wrong_symbols()):
            raise BadUsage(wrong[0], "The modules that are there, and where: `cat /proc/PID/maps`.")
        self._begun = True

    def _take_note_of_symbols(self, pid: int) -> None:
        """Where --symbol leaves functions out, blocks come and go unseen: nobody is accused."""
        for said in dpdk.what_is_unseen(pid, self.options.symbols):
            self._session.heap.view.calls_unseen = True
            self.tracking.mark_incomplete()
            self._told.problem(said)

    # ---- ending ----

    def _finish(self) -> None:
        self._inspection.finish()
        self.ending = self._group.ending(let_go=self._detaching)
        if self._begun:
            replaced = self._group.first.replaced and not self.options.follow_fork
            verify = self.options.verify and bool(self.hooks)
            unsaid = unsaid_at_the_end(self._session.heap, self.ending, replaced=replaced, verify=verify)
            for problem in (*self.wrong_symbols(), *unsaid):
                self.observer.problem(problem)
        self._end.over.set()
        self.observer.ended(self.ending)

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until the tracking is over (the target ended or was detached). False: not within `seconds`, or `leave`."""
        if seconds is not None:
            check_seconds(seconds)
        return self._end.wait(seconds)

    def wait_for_exit(self) -> Ending:
        """Waits until a spawned program is gone, also after it was detached or has replaced itself."""
        self.wait()
        if self._group.wait_launched_gone(self._end.left):
            self.ending = self._group.ending(let_go=self._end.left.is_set())
        return self.ending or Ending(None, None, "running")  # it was left

    def detach(self) -> None:
        """Takes the agents out of the targets, which run on at their old speed, and reads what they recorded until then."""
        if self._end.over.is_set() or not self._group.targets:
            return
        if self.options.verify and self._begun and self.hooks and not self._detaching and self._group.any_tracked():
            try:
                if self._session.heap.view.verify(at_end=True) is None:
                    self._told.problem("The heap could not be verified: this DPDK has no rte_malloc_dump_heaps.")
            except RtetrackError as error:
                self._told.problem(f"The heap could not be verified: {error}")
        if not self._detaching:
            self._inspection.last_look()
        self._detaching = True
        problems = self._group.unload()
        for stays in (problem for problem in problems if isinstance(problem, AgentStays)):
            self.observer.problem(f"{stays} {stays.hint}")  # not queued: the work may have ended with the tracking
        self._session.pump.stop()
        self._end.over.wait(UNLOAD_SECONDS)
        if failures := [problem for problem in problems if not isinstance(problem, AgentStays)]:
            raise failures[0]

    def leave(self) -> None:
        """Makes `wait` return soon: for a signal handler, which must not wait itself. `close` or `detach` follows."""
        self._end.left.set()

    def close(self) -> None:
        """Detaches if that was not done, and gives everything back. What was recorded can still be asked for."""
        self.detach()
        if self._group.targets:
            self._session.pump.join(UNLOAD_SECONDS)
            self._work.join(UNLOAD_SECONDS)
            self._group.offspring.join_threads(UNLOAD_SECONDS)
            self._recordings.finish(
                ending=self.ending,
                verified=self._session.heap.view.verified,
                leak_check=self._inspection.leak_check(),
            )
        self._group.close()

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- recording ----

    def record(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Records the session from here on into a new file at `path`; with `force` over a recording that is there.

        Raises BadUsage, NotLive.
        """
        where = path_of(path)
        recording_file.check(where, force=force)
        if self._end.over.is_set():
            raise NotLive("The tracking is over: there is nothing to record any more.")
        self._recordings.begin_now(where, force=force)

    def _state(self) -> dict[str, Any]:
        """What a recording says of the tracking itself."""
        return {"engine": self.engine, "compiler": self.compiler, "hooks": len(self.hooks), "lost": self.lost}
