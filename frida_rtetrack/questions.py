"""Questions: what a session can be asked, while it goes on and when it is over. A third of `Host`, beside what it is told (`control.py`).

Each answer is of one moment: what was recorded until the question is applied first. Nothing here begins or ends anything.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.inspection import Inspection
from frida_rtetrack.options import Options
from frida_rtetrack.reachability.seeker import Referrer
from frida_rtetrack.reports import summary
from frida_rtetrack.reports.freespace import FreeSpace
from frida_rtetrack.reports.leaks import LeakReport, Suppression
from frida_rtetrack.reports.lost import LostReport
from frida_rtetrack.reports.moment import Moment, Run
from frida_rtetrack.reports.stats import Stats
from frida_rtetrack.reports.summary import CallSite, Start, Summary
from frida_rtetrack.session import Session
from frida_rtetrack.stream.work import WorkQueue
from frida_rtetrack.symbols import dpdk
from frida_rtetrack.symbols.names import Names
from frida_rtetrack.target.agentoptions import check_address, check_is, check_seconds, check_top, checked_list, path_of
from frida_rtetrack.target.group import TargetGroup
from frida_rtetrack.target.sessionend import SessionEnd
from frida_rtetrack.target.target import Ending
from frida_rtetrack.tracking.badfree import BadFreeReport
from frida_rtetrack.tracking.heap import HeapDifference
from frida_rtetrack.tracking.map import Lookup, TrackingMap

SYNC_SECONDS = 5.0

try:
    VERSION = version("rtetrack-frida")
except PackageNotFoundError:  # run from the source folder
    VERSION = "0+source"


class Questions:
    """What `Host` answers. It has no parts of its own: `Host` makes them."""

    options: Options
    tracking: TrackingMap
    paused: bool
    ending: Ending | None
    _start: Start
    _end: SessionEnd
    _work: WorkQueue
    _group: TargetGroup
    _session: Session
    _inspection: Inspection

    @property
    def pid(self) -> int:
        """The first target's pid."""
        return self._group.first.pid

    @property
    def argv(self) -> tuple[str, ...]:
        """The first target's argument list."""
        return self._group.first.argv

    @property
    def names(self) -> Names:
        """What the numbers in events, blocks and reports stand for."""
        return self._session.names

    @property
    def engine(self) -> str:
        """The engine that the agent chose."""
        return self._group.engine

    @property
    def compiler(self) -> str:
        """Who compiled what the engine runs in the target: `gcc 12.2 -O2`, or `TinyCC` there and then."""
        return self._group.compiler

    @property
    def hooks(self) -> list[dict[str, str]]:
        """{function, module, address, how} of every hooked function."""
        return self._group.hooks

    @property
    def bad_frees(self) -> list[BadFreeReport]:
        """The bad frees so far, in the order in which they happened."""
        return self._session.heap.bad_frees.reports

    @property
    def bad_frees_not_kept(self) -> int:
        """How many more there were than are kept."""
        return self._session.heap.bad_frees.not_kept

    @property
    def verified(self) -> HeapDifference | None:
        """What the last comparison with DPDK's own heap found; None where there was none."""
        return self._session.heap.view.last

    @property
    def lost(self) -> int:
        """Events that were dropped: the ring stayed full, or a thread died while it wrote one."""
        return self._session.pump.lost

    def sync(self, seconds: float = SYNC_SECONDS) -> None:
        """Waits until everything that the target recorded before this call has been applied and reported."""
        check_seconds(seconds)
        if not self._end.over.is_set():
            deadline = time.monotonic() + seconds
            self._session.pump.sync(deadline)
            self._work.flush(deadline)

    def dump(self, path: str | os.PathLike[str] | None = None) -> tuple[Path, int]:
        """Writes the live allocations to `path` (default: the options'). Returns the path and the number of blocks.

        Raises DumpError where the file cannot be written.
        """
        where = None if path is None else path_of(path)
        dumper = self._session.dumper
        with ThreadPoolExecutor(1, "names") as meanwhile:
            meanwhile.submit(dumper.look_names_up)
            self.sync()
            live = dumper.live()
        return dumper.write(where, live), len(live)

    def dump_soon(self, why: str) -> None:
        """Has the dump file written with the heap as it is now, without waiting for it (SIGRTMIN to the host)."""
        check_is("text", why, str)
        self._session.pump.call_at_head(lambda: self._session.dumper.write_soon(why))

    def stats(self) -> Stats:
        """The figures of this moment."""
        self.sync()
        with self._session.pump.lock:
            return self._session.stats.take(
                engine=self.engine,
                compiler=self.compiler,
                hooks=tuple(self.hooks),
                lost=self.lost,
                paused=self.paused,
                recording=not self._end.over.is_set(),
                ring_waits=self._group.memory.counter("waits"),
            )

    def top(self, count: int = 10, by: str = "bytes") -> list[CallSite]:
        """The call sites of what is live with the most "bytes" or "blocks", or the "oldest" block."""
        check_top(count, by)
        self.sync()
        return summary.call_sites(self.tracking.live(), self._session.names, count, by)

    def moment(self) -> Moment:
        """What is live now, for a report or an export."""
        self.sync()
        run = Run(self.argv, self.pid, platform.node(), self._start, self.engine, VERSION)
        with self._session.pump.lock:
            return Moment(run, self.tracking.live(), self._session.names, time.monotonic_ns())

    def modules_like_dpdk(self) -> list[str]:
        """Base names of modules that were loaded and may have to do with DPDK: for a user who wonders where it is."""
        return dpdk.modules_like_dpdk((module.path for module in self._group.memory.modules()), self.options.library)

    def wrong_symbols(self) -> list[str]:
        """What is wrong with the options' symbols, a sentence each: offsets that lead to no code, modules that never came."""
        loaded = (module.path for module in self._group.memory.modules())
        return [*self._group.wrong_symbols, *dpdk.never_loaded(self.options.symbols, loaded)]

    def find(self, address: int) -> Lookup:
        """What is known of an address: see TrackingMap.find."""
        check_address(address)
        self.sync()
        return self.tracking.find(address)

    def leaks(self) -> LostReport:
        """Which live blocks nothing points to any more, found by reading the running program's memory. Raises NotLive, BadUsage."""
        self._check_recording()
        return self._inspection.leaks()

    def leak_report(self, suppressions: Sequence[Suppression] = ()) -> LeakReport:
        """What nobody will free, best evidence first: lost, growing since the tracking began, still held. Raises NotLive, BadUsage."""
        checked_list("suppressions", suppressions, Suppression)
        self._check_recording()
        return self._inspection.leak_report(suppressions)

    def refs(self, address: int) -> list[Referrer]:
        """What points to the live block that `address` lies in, or into it. Raises BadUsage, NotLive."""
        check_address(address)
        self._check_recording()
        return self._inspection.refs(address)

    def free_space(self) -> FreeSpace:
        """How DPDK's free memory is cut up now, read from the running program's heap. Raises NotLive."""
        self.sync()
        return self._inspection.free_space()

    @property
    def free_space_at_failures(self) -> list[FreeSpace]:
        """The same right after allocations failed: once a second at the most."""
        return self._inspection.spaces.failures

    def _check_recording(self) -> None:
        if self.paused:
            raise BadUsage("Nothing is recorded now: which blocks are live is not known.", "`resume` first.")

    def summary(self) -> Summary:
        """Everything that was found, as of now."""
        with self._session.pump.lock:
            return summary.summarize(
                self._session.heap,
                self._session.names,
                start=self._start,
                version=VERSION,
                engine=self.engine,
                compiler=self.compiler,
                hooks=len(self.hooks),
                pid=self.pid,
                argv=self.argv,
                ending=self.ending or Ending(None, None, "running"),
                lost=self.lost,
                leak_check=self._inspection.leak_check(),
                damage=self._group.memory.damage.counts,
            )
