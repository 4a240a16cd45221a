"""Host: one tracked target, from spawn or attach to its end.

It puts the agent into the target, drains the event ring on a thread of its own into the tracking map, and answers
whatever the prompt, the command line or a script asks. It prints nothing: what happens is told to an Observer.
"""

from __future__ import annotations

import os
import platform
import queue
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.errors import (
    AgentFailed,
    BadUsage,
    LibraryNotFound,
    NoDpdk,
    NotLive,
    RtetrackError,
    TargetEnded,
)
from frida_rtetrack.reports import summary
from frida_rtetrack.reports.dump import DumpError, write_dump
from frida_rtetrack.reports.summary import CallSite, Summary
from frida_rtetrack.stream.events import FINAL_BASELINE, SIZE_BITS, SIZE_MASK, EventBatch, Kind, Mark, threads
from frida_rtetrack.stream.ring import RingReader, SessionMemory
from frida_rtetrack.symbols.dpdk import from_debug_file, parse_symbols
from frida_rtetrack.symbols.names import BASELINE_LABEL, Names
from frida_rtetrack.target import execgate, process
from frida_rtetrack.target.addressspace import HeapRegion
from frida_rtetrack.target.agentlink import native_source
from frida_rtetrack.target.launch import launch
from frida_rtetrack.target.target import UNLOAD_SECONDS, Ending, Target
from frida_rtetrack.tracking import badfree
from frida_rtetrack.tracking.badfree import BadFreeReport, Circumstances
from frida_rtetrack.tracking.heap import HeapDifference, HeapSnapshot
from frida_rtetrack.tracking.map import BadFree, BadFreeKind, Lookup, TrackingMap

DEFAULT_DUMP_PATH = Path("/tmp/rteMallocTrackMapDump.txt")
ENGINES = ("auto", "native", "portable")
PORTABLE_FRAMES = 16
MAX_FRAMES = 256
IDLE_SECONDS = 0.01
HEARTBEAT_SECONDS = 0.25
BAD_FREE_DUMP_SECONDS = 1.0
BAD_FREES_KEPT = 100_000
BASELINE_SETTLE_SECONDS = 0.05
SNAPSHOT_HEAP_IS_GONE = -2
VERIFY_ROUNDS = 5
VERIFY_PAUSE_SECONDS = 0.02

try:
    VERSION = version("rtetrack-frida")
except PackageNotFoundError:  # run from the source folder
    VERSION = "0+source"


@dataclass(frozen=True, slots=True)
class Options:
    """How to track. The command line's options, with their defaults."""

    engine: str = "auto"
    library: str | None = None
    """The module with DPDK in it; None: whichever defines the functions."""
    symbols: tuple[str, ...] = ()
    """FUNCTION=MODULE+0xOFFSET, for a stripped program with DPDK linked in."""
    backtrace: bool = True
    free_backtrace: bool = True
    max_frames: int = 64
    buffer_mib: int = 64
    """Size of the event ring."""
    dump_path: Path = DEFAULT_DUMP_PATH
    dump_on_bad_free: bool = True
    hook_ways: tuple[str, ...] = ("near", "far", "attach")
    """How the native engine may redirect a function, best first; for tests of each way."""
    follow_fork: bool = False
    """Track the children that the program forks, too."""
    verify: bool = False
    """Compare with DPDK's own heap at the end: when the program exits, cleans up EAL, or is let go."""


class Observer:
    """What happens to a target, told on the host's threads. Override what is of interest; do not block for long."""

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


@dataclass(frozen=True, slots=True)
class Stats:
    """A moment's figures. Bytes and events; rates are per second since the figures were last asked for."""

    engine: str
    hooks: tuple[dict[str, str], ...]
    seconds: float
    live_blocks: int
    live_bytes: int
    peak_blocks: int
    peak_bytes: int
    allocations: int
    frees: int
    resizes: int
    failed: int
    allocated_bytes: int
    allocations_per_second: float
    frees_per_second: float
    by_type: tuple[tuple[str, int, int], ...]
    """(type, blocks, bytes), most bytes first."""
    by_socket: tuple[tuple[int, int, int], ...]
    """(socket asked for, -1 any; blocks, bytes)."""
    lost: int
    bad_frees: int
    paused: bool
    recording: bool
    memzones: tuple[int, int] = (0, 0)
    """Live memzones among the live blocks, and their bytes."""
    ring_waits: int = 0
    cut_stacks: dict[str, int] = field(default_factory=dict)


class Host:
    """A target under tracking. Make one with `Host.spawn` or `Host.attach`; use it as a context manager.

    >>> with Host.attach(4711) as host:
    ...     host.wait(10)
    ...     host.dump("/tmp/dump.txt")
    """

    def __init__(self, options: Options, observer: Observer | None = None) -> None:
        """Use `spawn` or `attach`."""
        self.options = options
        self.observer = observer or Observer()
        self.engine = ""
        self.tracking = TrackingMap()
        self.bad_frees: list[BadFreeReport] = []
        self.bad_frees_not_kept = 0
        self.paused = False
        self.ending: Ending | None = None
        self.names: Names
        self._memory: SessionMemory
        self._reader: RingReader
        self._memory_fd = -1
        self._targets: list[Target] = []
        self._children: dict[int, int] = {}  # index in the process table -> pidfd
        self._execs: set[int] = set()  # pids whose next program is being joined
        self._lock = threading.RLock()
        self._stop_draining = threading.Event()
        self._wake = threading.Event()
        self._over = threading.Event()
        self._left = threading.Event()
        self._detaching = False
        self._joining = False  # attached, and the baseline is not taken yet: not tracking, to the user
        self._work: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._started = time.monotonic()
        self._last_rates = (self._started, 0, 0)
        self._last_bad_free_dump = 0.0
        self._bad_free_dump_due = False
        self._dumps_due: deque[tuple[int, str]] = deque()  # ring index, why: the heap as it is there
        self._bad_frees_found = 0
        self._snapshot: HeapSnapshot | None = None  # the one that is arriving
        self._snapshots: dict[int, HeapSnapshot] = {}
        self._snapshot_number = 0
        self._snapshot_lock = threading.Lock()
        self._lost_seen = 0
        self._eal_ranges: list[tuple[int, int]] = []
        self._at_cleanup: NDArray[np.void] | None = None
        self._sharing_untracked: tuple[int, ...] = ()
        self._sharing_told = False
        self.verified: HeapDifference | None = None

    # ---- beginning ----

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
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
        host = cls(options or Options(), observer)
        parse_symbols(host.options.symbols)
        path = process.find_program(argv[0])
        process.check_executable(os.path.realpath(path), argv[0])
        gated = launch(path, argv, terminal=terminal, keep_orphans=host.options.follow_fork)
        target = Target(gated.pid, gated.session, tuple(argv), gated)
        try:
            host._begin(target)
            for other in also_attach:
                host.join(other)
        except BaseException:
            target.end_launched()
            host.close()
            raise
        if resume:
            host.resume()
        return host

    @classmethod
    def attach(
        cls,
        target: int | str | Sequence[int | str],
        options: Options | None = None,
        observer: Observer | None = None,
    ) -> Host:
        """Joins the running process `target`, a pid or a name, or several that share one DPDK heap. Raises RtetrackError."""
        host = cls(options or Options(), observer)
        parse_symbols(host.options.symbols)
        names = [target] if isinstance(target, int | str) else target
        pids = [process.find_process(str(name)) for name in names]
        process.check_one_heap(pids)
        host.tracking.mark_incomplete()
        host._joining = True
        try:
            for pid in pids:
                process.check_attachable(pid)
                if host._targets:
                    host.join(pid)
                else:
                    host._begin(Target.attach(pid))
            for joined in host._targets:
                host._check_dpdk_was_found(joined)
                joined.look()
            host._sharing_untracked = process.sharing_the_heap(pids)
            host.baseline()
        except BaseException:
            host.close()
            raise
        host._joining = False
        for joined in host._targets:
            host._work.put(("hooked", joined.hooks))
        return host

    def join(self, pid: int | str) -> None:
        """Tracks the running process `pid` too; it shares the DPDK heap of the one that is tracked already."""
        number = process.find_process(str(pid))
        process.check_attachable(number)
        self._add(Target.attach(number))

    def _begin(self, target: Target) -> None:
        """Makes the session memory in the first target, and starts to read it."""
        target.load(self._on_agent_message, self._on_frida_detached)
        in_target = target.call("create_session", process.SESSION_NAME)
        self._memory_fd = os.open(f"/proc/{target.pid}/fd/{in_target}", os.O_RDWR | os.O_CLOEXEC)
        self._memory = SessionMemory.create(self._memory_fd, self.options.buffer_mib)
        self.names = Names(self._memory)
        self._reader = RingReader(self._memory, self._thread_alive)
        self._targets.append(target)
        self._start_thread(self._keep_heartbeat)
        self._start_thread(self._drain)
        self._start_thread(self._do_work)
        self._start_agent(target, in_target)

    def _add(self, target: Target, *, executed: bool = False) -> None:
        """Lets another process write into the session memory. `executed`: it begins, and its heap is its own."""
        target.load(self._on_agent_message, self._on_frida_detached)
        in_target = target.call("join_session", f"/proc/{os.getpid()}/fd/{self._memory_fd}")
        self._start_agent(target, in_target, executed=executed)
        self._targets.append(target)

    def _start_agent(self, target: Target, memory_fd: int, *, executed: bool = False) -> None:
        options = self._agent_options(target) | {"ownHeap": executed}
        state = target.call("start", memory_fd, options, native_source(f"engine_{self._engine()}.c"))
        target.settle()
        target.number = state["process"]
        self.engine = state["engine"]

    @property
    def pid(self) -> int:
        """The first target's pid."""
        return self._targets[0].pid

    @property
    def argv(self) -> tuple[str, ...]:
        """The first target's argument list."""
        return self._targets[0].argv

    @property
    def hooks(self) -> list[dict[str, str]]:
        """{function, module, address, how} of every hooked function."""
        return [hook for target in self._targets for hook in target.hooks]

    def _agent_options(self, target: Target) -> dict[str, Any]:
        options = self.options
        return {
            "engine": self._engine(),
            "library": options.library,
            "maxFrames": options.max_frames,
            "allocationBacktrace": options.backtrace,
            "freeBacktrace": options.backtrace and options.free_backtrace,
            "symbols": self._symbols(target),
            "hookWays": options.hook_ways,
            "verify": options.verify,
            "followFork": options.follow_fork,
            "signal": int(signal.SIGRTMIN),
            "sessionBytes": self._memory.counter("total_bytes"),
            "populateBytes": self._memory.counter("stacks_offset"),
        }

    def _symbols(self, target: Target) -> dict[str, dict[str, int]]:
        """Where functions are that the agent cannot find by itself: the debug file's word, then the user's."""
        try:
            program = os.readlink(f"/proc/{target.pid}/exe")
        except OSError:
            return parse_symbols(self.options.symbols)
        return {**from_debug_file(program), **parse_symbols(self.options.symbols)}

    def _engine(self) -> str:
        native_here = platform.machine() == "x86_64"
        if self.options.engine == "native" and not native_here:
            raise BadUsage("The native engine is for x86-64.", "Use --engine portable.")
        if self.options.engine == "auto":
            return "native" if native_here else "portable"
        return self.options.engine

    def _check_dpdk_was_found(self, target: Target) -> None:
        if target.hooks:
            return
        names = [os.path.basename(path) for path in target.call("module_names")]
        if self.options.library is not None:
            close = [name for name in names if "rte" in name or self.options.library.split(".")[0] in name]
            raise LibraryNotFound(
                f"--lib {self.options.library} names no module of process {target.pid} with DPDK's allocation functions in it.",
                f"Modules that come close: {', '.join(close[:8]) or 'none'}. Without --lib, every module is searched.",
            )
        close = [name for name in names if name.startswith("librte_")]
        raise NoDpdk(
            f"Process {target.pid} has no module that defines rte_malloc_socket and rte_free "
            f"({len(names)} modules were searched, exported names and .symtab).",
            f"Modules that come close: {', '.join(close[:8])}." if close
            else "Is it the right process? Where DPDK is linked in and stripped, its debug file or --symbol helps.",
        )  # fmt: skip

    def resume(self) -> None:
        """Lets a program that was spawned with `resume=False` run."""
        gated = self._targets[0].gated
        assert gated is not None
        gated.resume()

    def _start_thread(self, run: Any) -> None:
        thread = threading.Thread(target=run, name=run.__name__.strip("_"), daemon=True)
        self._threads.append(thread)
        thread.start()

    # ---- Frida's messages ----

    def _on_agent_message(self, target: Target, message: dict[str, Any]) -> None:
        if message["type"] == "hooked":
            target.hooks.extend(message["hooks"])
            target.space.refresh()
            if not self._joining:
                self._work.put(("hooked", message["hooks"]))
        elif message["type"] == "another heap":
            self._work.put(
                (
                    "problem",
                    f"Process {target.pid} ({message['module']}) uses DPDK as well: its heap is another one, and is not "
                    f"tracked. Attach to it with a command of its own.",
                )
            )
        elif message["type"] == "error":
            self._work.put(("problem", f"In process {target.pid}: {message['text']}"))

    def _on_frida_detached(self, target: Target) -> None:
        self._wake.set()

    def _notice_children(self) -> None:
        """Forked children put themselves into the process table (--follow-fork): they must end before the reading does."""
        for number in range(self._memory.counter("processes_used")):
            parent, pid = self._memory.parent_pid(number), self._memory.pid(number)
            if number in self._children or parent is None or not pid:
                continue
            try:
                self._children[number] = os.pidfd_open(pid)
            except OSError:  # it has ended already
                self._children[number] = -1
            self._work.put(("forked", (parent, pid)))

    def _notice_execs(self) -> None:
        """Processes that are about to execute a program wait for us (--follow-fork)."""
        for entry, pid in self._memory.waiting_execs():
            self._execs.add(pid)
            thread = threading.Thread(target=self._follow_exec, args=(entry, pid), name=f"follow {pid}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _follow_exec(self, entry: int, pid: int) -> None:
        """Joins the program that `pid` is about to execute, before it begins."""
        try:
            held = execgate.hold(pid, lambda: self._memory.let_exec_go(entry))
            try:
                target = Target.attach(pid)
                target.ours = self._targets[0].ours
                self._add(target, executed=True)
            finally:
                execgate.release(held)
        except (execgate.NotHeld, RtetrackError, OSError) as error:
            self._work.put(("problem", f"The program that process {pid} executes is not followed: {error}"))
        finally:
            self._execs.discard(pid)
            self._wake.set()

    def _child_alive(self, pidfd: int) -> bool:
        return pidfd >= 0 and not select.select([pidfd], [], [], 0)[0]

    # ---- the way of the events ----

    def _keep_heartbeat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            self._memory.heartbeat()

    def _thread_alive(self, process_number: int, tid: int) -> bool:
        return process.thread_exists(self._memory.pid(process_number), tid)

    def _any_tracked(self) -> bool:
        return any(target.is_tracked for target in self._targets)

    def _anybody_writes(self) -> bool:
        return (
            self._any_tracked()
            or bool(self._execs)
            or any(map(self._child_alive, self._children.values()))
            or self._may_still_start()
        )

    def _may_still_start(self) -> bool:
        """Whether a launcher left processes behind that may execute the program with DPDK yet (--follow-fork)."""
        gated = self._targets[0].gated if self._targets else None
        return (
            self.options.follow_fork
            and gated is not None
            and not self._memory.counter("heap_owner")
            and bool(gated.orphans())
        )

    def _drain(self) -> None:
        try:
            idle = IDLE_SECONDS
            while True:
                last = self._stop_draining.is_set() or not self._anybody_writes()
                with self._lock:
                    batch = self._reader.read()
                    if len(batch) or self._dumps_due:
                        self._apply(batch)
                if len(batch):
                    idle = IDLE_SECONDS
                elif last and self._reader.pending() == 0:
                    break
                else:
                    self._wake.wait(idle)
                    self._wake.clear()
                    idle = min(idle * 1.2, 5 * IDLE_SECONDS)
                self._dump_if_due()
                self._notice_losses()
                if self.options.follow_fork:
                    self._notice_children()
                    self._notice_execs()
        except Exception as error:  # a bug of ours must not leave the user waiting for ever
            self._work.put(("problem", f"Reading the events failed: {error!r}. The figures end here."))
        self._conclude()

    def _apply(self, batch: EventBatch) -> None:
        """Gives the batch to the tracking map, cut at the marks that must see the map as it is there."""
        start = 0
        now = time.monotonic_ns()
        first = self._reader.consumed - len(batch)
        while self._dumps_due and self._dumps_due[0][0] <= first + len(batch):
            due, why = self._dumps_due.popleft()
            before = max(due - first, start)
            self._apply_cut(batch[start:before], now)
            self._queue_dump(self.options.dump_path, why)
            start = before
        self._apply_cut(batch[start:], now)

    def _apply_cut(self, batch: EventBatch, now: int) -> None:
        start = 0
        for at in (batch["kind"] == Kind.MARK).nonzero()[0]:
            self._apply_events(batch[start : at + 1], now)
            self._on_mark(batch[at])
            start = int(at) + 1
        self._apply_events(batch[start:], now)

    def _apply_events(self, events: EventBatch, now_ns: int) -> None:
        if not len(events):
            return
        if self._snapshot is not None:
            events = self._collect_snapshot(self._snapshot, events)
        if any(target.cleaned_up for target in self._targets):
            events = self._accuse_after_cleanup(events, now_ns)
        unknown = self.tracking.totals.unknown_frees if self._sharing_untracked else 0
        found = self.tracking.apply(events, now_ns)
        if self._sharing_untracked and not self._sharing_told and self.tracking.totals.unknown_frees > unknown:
            self._tell_of_sharing(events)
        if found:
            around = [Circumstances(container=block) for block in self.tracking.containing(found)]
            self._found(found, around)

    def _found(self, found: list[BadFree], around: list[Circumstances]) -> None:
        self._bad_frees_found += len(found)
        self._work.put(("bad_frees", (found, around)))
        self._bad_free_dump_due = self.options.dump_on_bad_free

    def _collect_snapshot(self, snapshot: HeapSnapshot, events: EventBatch) -> EventBatch:
        """Takes DPDK's busy blocks out of the events, except where they are to become the baseline."""
        of_heap = events["kind"] == Kind.BASELINE_BLOCK
        if not of_heap.any():
            return events
        snapshot.events.append(events[of_heap])
        return events if snapshot.inserts else events[~of_heap]

    def _accuse_after_cleanup(self, events: EventBatch, now_ns: int) -> EventBatch:
        """Takes the frees out of the events: there is no heap any more that they could be of."""
        gone = [target.number for target in self._targets if target.cleaned_up]
        frees = np.isin(events["kind"], (Kind.FREED, Kind.RESIZE_STARTED))
        frees &= np.isin(self._memory.processes_of_threads(threads(events)), gone)
        found = []
        for event in events[frees]:
            lookup = self.tracking.find(int(event["address"]))
            known = lookup.block if lookup.block is not None and lookup.offset == 0 else None
            if known is None and lookup.freed is not None:
                known = lookup.freed.block
            found.append(
                BadFree(
                    BadFreeKind.AFTER_CLEANUP,
                    int(event["address"]),
                    self.tracking.events,
                    now_ns,
                    int(event["size_and_thread"]) >> SIZE_BITS,
                    int(event["stack"]),
                    int(event["api"]),
                    known,
                    None if lookup.freed is None else lookup.freed.freed,
                    history_complete=True,
                )
            )
        if found:
            self._found(found, [Circumstances(after_cleanup=True)] * len(found))
        return events[~frees]

    def _process_of(self, event: np.void) -> int:
        return self._memory.thread(int(event["size_and_thread"]) >> SIZE_BITS).process

    def _tell_of_sharing(self, events: EventBatch) -> None:
        """A block was freed that no tracked process allocated: it may be another one's that has the same heap."""
        self._sharing_told = True
        pids = ", ".join(map(str, self._sharing_untracked))
        self._work.put(
            (
                "problem",
                f"Blocks are freed that were allocated by another process which shares DPDK's heap and is not tracked "
                f"({pids}): that is no bad free. Attach to all of them to see both sides.",
            )
        )

    def _on_mark(self, event: np.void) -> None:
        mark, argument = Mark(int(event["api"])), int(event["size_and_thread"]) & SIZE_MASK
        process_number = self._process_of(event)
        target = next((target for target in self._targets if target.number == process_number), None)
        if target is None:  # a forked child: what it does to EAL is not what the program does
            target = self._targets[0]
            if mark is not Mark.SIGNAL:
                return
        if mark is Mark.SIGNAL:
            self._queue_dump(self.options.dump_path, "SIGRTMIN")
        elif mark is Mark.EAL_INIT_STARTED:
            self._eal_ranges.append((self.tracking.events, 1 << 63))
        elif mark is Mark.EAL_INIT_ENDED and self._eal_ranges:
            self._eal_ranges[-1] = (self._eal_ranges[-1][0], self.tracking.events)
            self._work.put(("refresh", target))
        elif mark is Mark.HEAP_REGION:
            target.space.heap_regions.append(HeapRegion(int(event["address"]), argument, int(event["socket"])))
        elif mark is Mark.EAL_CLEANUP_STARTED:
            if not any(other.is_tracked and not other.cleaned_up for other in self._targets if other is not target):
                self._at_cleanup = self.tracking.live()
        elif mark is Mark.EAL_CLEANUP_ENDED:
            target.cleaned_up = True
        elif mark is Mark.BASELINE_STARTED:
            self._snapshot = self._snapshots.setdefault(argument, HeapSnapshot(inserts=False))
            self._snapshot.started_sequence = self.tracking.events
        elif mark is Mark.HEAP_SNAPSHOT and self._snapshot is not None and self._snapshot.live is None:
            self._snapshot.live = self.tracking.live()
        elif mark is Mark.BASELINE_ENDED and self._snapshot is not None:
            self._snapshot.difference = self._snapshot.compare(self.tracking)
            if argument == FINAL_BASELINE:
                self.verified = self._snapshot.difference
            self._snapshot.live = None
            self._snapshot.events.clear()
            self._snapshot.ended.set()
            self._snapshot = None

    def _notice_losses(self) -> None:
        lost = self.lost
        if lost == self._lost_seen:
            return
        self._lost_seen = lost
        with self._lock:
            self.tracking.mark_incomplete()
        self._work.put(("lost", lost))

    def _dump_if_due(self) -> None:
        now = time.monotonic()
        if self._bad_free_dump_due and now - self._last_bad_free_dump >= BAD_FREE_DUMP_SECONDS:
            self._bad_free_dump_due = False
            self._last_bad_free_dump = now
            self._queue_dump(self.options.dump_path, "bad free")

    def _queue_dump(self, path: Path, why: str) -> None:
        with self._lock:
            live = self.tracking.live()
        self._work.put(("dump", (path, why, live)))

    def _conclude(self) -> None:
        if self._bad_free_dump_due:
            self._bad_free_dump_due = False
            self._queue_dump(self.options.dump_path, "bad free")
        while self._dumps_due:
            self._queue_dump(self.options.dump_path, self._dumps_due.popleft()[1])
        self._work.put(("conclude", None))

    # ---- what takes time, off the way of the events ----

    def _do_work(self) -> None:
        while True:
            task, argument = self._work.get()
            try:
                if task == "conclude":
                    self._finish()
                    return
                self._do(task, argument)
            except Exception as error:  # an observer's mistake must not end the tracking
                self._report_failure(task, error)

    def _do(self, task: str, argument: Any) -> None:
        if task == "bad_frees":
            for target in self._targets:
                target.space.refresh()
            for found, around in zip(*argument, strict=True):
                self._report_bad_free(found, around)
        elif task == "dump":
            path, why, live = argument
            try:
                self._write_dump(path, live)
                self.observer.dumped(path, len(live), why)
            except DumpError as error:
                self.observer.problem(f"{error} {error.hint}".rstrip())
        elif task == "hooked":
            self.observer.hooked(argument)
        elif task == "problem":
            self.observer.problem(argument)
        elif task == "sync":
            argument.set()
        elif task == "forked":
            parent, child = argument
            self.observer.forked(parent, child)
        elif task == "refresh":
            argument.space.refresh()
        elif task == "lost":
            self._heal(argument)

    def _heal(self, lost: int) -> None:
        if lost != self._lost_seen:
            return  # more were lost since: that task does it
        self.observer.problem(
            f"{lost:,} events were lost so far; taking a fresh look at the heap (--buffer makes the ring larger)."
        )
        try:
            self.baseline()
        except RtetrackError as error:
            self.observer.problem(f"The heap could not be read after the loss: {error}")

    def _report_failure(self, task: str, error: Exception) -> None:
        try:
            self.observer.problem(f"Handling of {task} failed: {error!r}.")
        except Exception:  # nobody is left to tell
            pass

    def _report_bad_free(self, found: BadFree, around: Circumstances) -> None:
        if len(self.bad_frees) >= BAD_FREES_KEPT:
            self.bad_frees_not_kept += 1
            return
        number = self._memory.thread(found.thread).process
        target = next((target for target in self._targets if target.number == number), self._targets[0])
        around = replace(around, others=self._sharing_untracked)
        report = badfree.explain(len(self.bad_frees) + 1, found, around, self.names, target)
        self.bad_frees.append(report)
        self.observer.bad_free(report)

    def _write_dump(self, path: Path, live: NDArray[np.void]) -> None:
        live["label"][live["baseline"] & (live["label"] == 0)] = BASELINE_LABEL
        write_dump(path, live, self.names.label, self.names.stack_text)

    def _finish(self) -> None:
        self.ending = self._how_it_ended()
        self._over.set()
        self.observer.ended(self.ending)

    def _how_it_ended(self) -> Ending:
        return self._targets[0].ending(let_go=self._detaching)

    # ---- ending ----

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until the tracking is over (the target ended or was detached). False: not within `seconds`, or `leave`."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._over.wait(0.1 if deadline is None else max(0.0, min(0.1, deadline - time.monotonic()))):
            if self._left.is_set() or (deadline is not None and time.monotonic() >= deadline):
                return False
        return True

    def wait_for_exit(self) -> Ending:
        """Waits until a spawned program is gone, also after it was detached or has replaced itself."""
        self.wait()
        first = self._targets[0]
        if first.gated is not None:
            while not self._left.is_set() and not first.wait_gone(0.1):
                pass
            self.ending = first.ending(let_go=self._left.is_set())
        assert self.ending is not None
        return self.ending

    def detach(self) -> None:
        """Takes the agents out of the targets, which run on at their old speed, and reads what they recorded until then."""
        if self._over.is_set() or not self._targets:
            return
        if self.options.verify and self.hooks and not self._detaching and self._any_tracked():
            try:
                self.verify()
            except RtetrackError as error:
                self._work.put(("problem", f"The heap could not be verified: {error}"))
        self._detaching = True
        problems = [target.unload() for target in self._targets if target.is_tracked]
        self._stop_draining.set()
        self._wake.set()
        self._over.wait(UNLOAD_SECONDS)
        for problem in problems:
            if problem is not None and not isinstance(problem, TargetEnded):
                raise problem

    def leave(self) -> None:
        """Makes `wait` return soon: for a signal handler, which must not wait itself. `close` or `detach` follows."""
        self._left.set()

    def end(self, patience_seconds: float = 5.0) -> None:
        """Ends the target, and what it executed: SIGTERM, and SIGKILL if it is still there after `patience_seconds`."""
        deadline = time.monotonic() + patience_seconds
        try:
            self._signal_all(signal.SIGTERM)
            for target in self._to_be_ended():
                target.wait_gone(max(deadline - time.monotonic(), 0))
            self.kill()
        except NotLive:
            pass

    def interrupt(self) -> None:
        """Sends SIGINT to the target and to what it executed, as a terminal's Ctrl-C reaches all. Raises NotLive."""
        self._signal_all(signal.SIGINT)

    def kill(self) -> None:
        """Kills the target (SIGKILL), and what it executed. Raises NotLive where nothing is left of them."""
        self._signal_all(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Sends a signal to the target, or to what it executed if it is gone. Raises NotLive where nothing is left."""
        next(iter(self._to_be_ended()), self._targets[0]).send_signal(number)

    def _signal_all(self, number: int) -> None:
        left = self._to_be_ended()
        if not left:
            raise NotLive(f"Process {self.pid} has already ended.")
        for target in left:
            target.try_signal(number)

    def _to_be_ended(self) -> list[Target]:
        """What is left of the target and of the programs that a spawned one executed (--follow-fork), each once."""
        candidates = [target for target in self._targets if target.ours or target is self._targets[0]]
        return list({target.pid: target for target in candidates if not target.is_gone()}.values())

    def close(self) -> None:
        """Detaches if that was not done, and gives everything back. What was recorded can still be asked for."""
        self.detach()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(UNLOAD_SECONDS)
        self._threads.clear()
        for target in self._targets:
            target.close()
        for pidfd in self._children.values():
            if pidfd >= 0:
                os.close(pidfd)
        self._children.clear()
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- questions ----

    def sync(self, seconds: float = 5.0) -> None:
        """Waits until everything that the target recorded before this call has been applied and reported."""
        if not self._over.is_set():
            head = self._memory.counter("head")
            deadline = time.monotonic() + seconds
            while self._reader.consumed < head and not self._over.is_set() and time.monotonic() < deadline:
                time.sleep(0.002)
            with self._lock:  # the batch that was taken out last has been applied
                pass
            done = threading.Event()
            self._work.put(("sync", done))
            while not done.wait(0.02) and not self._over.is_set() and time.monotonic() < deadline:
                pass

    def dump(self, path: str | os.PathLike[str] | None = None) -> tuple[Path, int]:
        """Writes the live allocations to `path` (default: the options'). Returns the path and the number of blocks.

        Raises DumpError where the file cannot be written.
        """
        self.sync()
        target = Path(path) if path is not None else self.options.dump_path
        with self._lock:
            live = self.tracking.live()
        self._write_dump(target, live)
        return target, len(live)

    def dump_soon(self, why: str) -> None:
        """Has the dump file written with the heap as it is now, without waiting for it (SIGRTMIN to the host)."""
        if self._over.is_set():
            self._queue_dump(self.options.dump_path, why)
        else:
            self._dumps_due.append((self._memory.counter("head"), why))
            self._wake.set()

    def stats(self) -> Stats:
        """The figures of this moment."""
        self.sync()
        with self._lock:
            totals = self.tracking.totals
            now = time.monotonic()
            then, allocations, frees = self._last_rates
            self._last_rates = (now, totals.allocations, totals.frees)
            span = max(now - then, 1e-9)
            return Stats(
                engine=self.engine,
                hooks=tuple(self.hooks),
                seconds=now - self._started,
                live_blocks=self.tracking.live_blocks,
                live_bytes=self.tracking.live_bytes,
                peak_blocks=self.tracking.peak.blocks,
                peak_bytes=self.tracking.peak.bytes,
                allocations=totals.allocations,
                frees=totals.frees,
                resizes=totals.resizes,
                failed=totals.failed,
                allocated_bytes=totals.allocated_bytes,
                allocations_per_second=(totals.allocations - allocations) / span,
                frees_per_second=(totals.frees - frees) / span,
                by_type=tuple(summary.types(self.tracking.live(), self.names)),
                memzones=summary.memzones(self.tracking.live()),
                by_socket=tuple(
                    (int(row["socket"]), int(row["blocks"]), int(row["bytes"])) for row in self.tracking.by_socket()
                ),
                lost=self.lost,
                bad_frees=self._bad_frees_found,
                paused=self.paused,
                recording=not self._over.is_set(),
                ring_waits=self._memory.counter("waits"),
            )

    @property
    def lost(self) -> int:
        """Events that were dropped: the ring stayed full, or a thread died while it wrote one."""
        return self._memory.counter("lost") + self._reader.holes

    def top(self, count: int = 10, by: str = "bytes") -> list[CallSite]:
        """The call sites of what is live with the most "bytes" or "blocks", or the "oldest" block."""
        self.sync()
        with self._lock:
            return summary.call_sites(self.tracking.live(), self.names, count, by)

    def modules_like_dpdk(self) -> list[str]:
        """Base names of modules that were loaded and may have to do with DPDK: for a user who wonders where it is."""
        wanted = "rte_" if self.options.library is None else self.options.library.split(".")[0]
        names = {os.path.basename(module.path) for module in self._memory.modules()}
        return sorted(name for name in names if "rte_" in name or wanted in name)[:8]

    def find(self, address: int) -> Lookup:
        """What is known of an address: see TrackingMap.find."""
        self.sync()
        with self._lock:
            return self.tracking.find(address)

    def summary(self) -> Summary:
        """Everything that was found, as of now."""
        with self._lock:
            totals = self.tracking.totals
            return Summary(
                names=self.names,
                version=VERSION,
                engine=self.engine,
                pid=self.pid,
                argv=self.argv,
                ending=self.ending or Ending(None, None, "running"),
                allocations=totals.allocations,
                frees=totals.frees,
                resizes=totals.resizes,
                failed=totals.failed,
                lost=self.lost,
                allocated_bytes=totals.allocated_bytes,
                live_blocks=self.tracking.live_blocks,
                live_bytes=self.tracking.live_bytes,
                peak_blocks=self.tracking.peak.blocks,
                peak_bytes=self.tracking.peak.bytes,
                bad_frees=tuple(self.bad_frees),
                bad_frees_not_kept=self.bad_frees_not_kept,
                call_sites=tuple(summary.call_sites(self.tracking.live(), self.names, summary.CALL_SITES)),
                memzones=summary.memzones(self.tracking.live()),
                leaks=None
                if self._at_cleanup is None
                else summary.leaks(self._at_cleanup, self._eal_ranges, self.names),
                verified=self.verified,
            )

    # ---- DPDK's own view ----

    def _take_snapshot(self, *, inserts: bool = False) -> HeapDifference | None:
        """Compares with DPDK's heap at one moment; None where DPDK has no function to ask. Raises NotLive, AgentError."""
        with self._snapshot_lock:
            self._snapshot_number += 1
            number = self._snapshot_number
            snapshot = self._snapshots[number] = HeapSnapshot(inserts=inserts)
            try:
                blocks = self._ask("snapshot", number)
                if blocks is None:
                    return None
                if blocks == SNAPSHOT_HEAP_IS_GONE:
                    raise NotLive("The program has called rte_eal_cleanup: DPDK's heap is gone.")
                if blocks < 0:
                    raise AgentFailed("The agent could not get memory for a snapshot of DPDK's heap.")
                while not snapshot.ended.wait(0.05):
                    if self._over.is_set():
                        raise NotLive("The program ended while its heap was being read.")
                return snapshot.difference
            finally:
                del self._snapshots[number]

    def baseline(self) -> int | None:
        """Takes what already lives in DPDK's heap into the tracking, which is complete from then on.

        Done by `attach`, by `resume_recording` and after a loss of events. Returns the number of blocks that the heap
        has, None where this DPDK cannot be asked: then the frees of unknown blocks are counted and never accused.
        """
        if self._take_snapshot(inserts=True) is None:
            return None
        # Calls that were under way when the hooks were installed were not seen: what they left is set right here.
        time.sleep(BASELINE_SETTLE_SECONDS)
        difference = self._lasting_difference()
        if difference is None:
            return None
        now = time.monotonic_ns()
        with self._lock:
            if difference.missing:
                self.tracking.insert_baseline(
                    np.array([element.address for element in difference.missing], np.uint64),
                    np.array([element.size_bytes for element in difference.missing], np.uint64),
                    difference.since_sequence,
                    now,
                )
            self.tracking.forget(difference.unexpected)
            if not self._sharing_untracked:  # else its blocks come and go unseen
                self.tracking.mark_complete()
        return difference.busy

    def verify(self) -> HeapDifference | None:
        """Compares the live set with DPDK's own list of busy blocks, at one moment, while the program runs.

        The answer is kept for the summary. None where this DPDK has no rte_malloc_dump_heaps. Raises NotLive.
        """
        difference = self._lasting_difference()
        if difference is not None:
            self.verified = difference
        return difference

    def _lasting_difference(self) -> HeapDifference | None:
        difference = self._take_snapshot()
        for _ in range(VERIFY_ROUNDS - 1):
            if not difference:
                break
            time.sleep(VERIFY_PAUSE_SECONDS)
            again = self._take_snapshot()
            if again is None:
                return None
            difference = again.persisting(difference)
        return difference

    # ---- commands ----

    def pause(self) -> None:
        """Stops recording: the program runs at nearly its bare speed until `resume_recording`."""
        self._command_all("pause")
        self.paused = True

    def resume_recording(self) -> None:
        """Records again, after a fresh baseline: what was allocated and freed during the pause is set right."""
        with self._lock:
            self.tracking.mark_incomplete()
        self._command_all("resume")
        self.paused = False
        self.baseline()

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Calls the first agent that is still there, of those that found DPDK if any did. Raises NotLive if none is."""
        for target in sorted(self._targets, key=lambda target: not target.hooks):
            if target.is_tracked and not target.cleaned_up:
                try:
                    return target.call(method, *arguments)
                except TargetEnded:
                    continue
        raise NotLive("The program is not being tracked any more.")

    def _command_all(self, method: str) -> None:
        if not self._any_tracked():
            raise NotLive("The program is not being tracked any more.")
        for target in self._targets:
            if target.is_tracked:
                target.call(method)
