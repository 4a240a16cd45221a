"""Asks a running session who points to its blocks: which of them are lost, and what holds one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.errors import BadUsage, NotLive, TargetEnded
from frida_rtetrack.reachability.dpdk import page_tables
from frida_rtetrack.reachability.elements import Chain, chains
from frida_rtetrack.reachability.leaks import Judged, search
from frida_rtetrack.reachability.memory import ProcessMemory, Ranges, as_ranges, common, without, writable_of
from frida_rtetrack.reachability.scan import ADDRESS_MASK, NOWHERE, Blocks, Places, scan
from frida_rtetrack.symbols.names import Names
from frida_rtetrack.target import process, registers
from frida_rtetrack.target.addressspace import HeapRegion
from frida_rtetrack.target.group import TargetGroup
from frida_rtetrack.target.registers import Registers
from frida_rtetrack.target.target import Target
from frida_rtetrack.tracking.map import TrackingMap

MOST_REFERRERS = 1000


@dataclass(frozen=True, slots=True)
class Referrer:
    """A pointer to a block."""

    address: int
    """Where the pointer is; 0: in a register."""
    pid: int
    where: str
    """`app+0x4040 (flow_table)`, `the stack of lcore-worker-1 (tid 12), in frame 2, poll at app.c:40`, `a block of type flow ..., at offset 16`, ..."""
    offset: int
    """How far into the block it points (bytes)."""


class Seeker:
    """Looks into the memory of the processes that are tracked. What shares their heap untracked is looked into as well."""

    def __init__(
        self,
        tracking: TrackingMap,
        group: TargetGroup,
        names: Names,
        *,
        sync: Callable[[], None],
    ) -> None:
        """`sync` waits until what was recorded is applied."""
        self._tracking = tracking
        self._group = group
        self._names = names
        self._sync = sync
        self._one_at_a_time = threading.Lock()
        self._page_tables: dict[tuple[int, tuple[HeapRegion, ...]], Ranges] = {}

    def leaks(self) -> Judged:
        """Judges every live block. Raises NotLive."""

        def live() -> NDArray[np.void]:
            self._sync()
            return self._tracking.live()

        with self._one_at_a_time:
            return search(live, self._places, self._registers, complete=lambda: self._tracking.complete)

    def refs(self, address: int) -> list[Referrer]:
        """What points to the live block that `address` lies in, or into it. Raises BadUsage, NotLive."""
        with self._one_at_a_time:
            self._sync()
            blocks = Blocks(self._tracking.live())
            index = int(blocks.containing(np.array([address], np.uint64))[0])
            if index == NOWHERE:
                raise BadUsage(f"{address:#x} lies in no live block.", "`show` says what is known of an address.")
            places = self._places()
            pointers, _ = scan(blocks, places, freed_counts=not self._tracking.complete)
            pids = {place.number: place.pid for place in places}
            self._group.refresh_spaces()
            stopped = {target.pid: registers.read(target.pid, frames=True) for target in self._tracked()}
            mine = np.flatnonzero(pointers.target == index)[:MOST_REFERRERS].tolist()
            found = [
                Referrer(
                    at := int(pointers.at[i]),
                    pid := pids[int(pointers.process[i])],
                    self._describe(at, int(pointers.process[i]), blocks, int(pointers.source[i]), stopped.get(pid)),
                    int(pointers.offset[i]),
                )
                for i in mine
            ]
            return found + self._in_registers(int(blocks.starts[index]), int(blocks.ends[index]), stopped)

    def heaps(self) -> tuple[list[tuple[Chain, int]], bool]:
        """DPDK's heaps with their NUMA sockets; and whether each could be followed to its end. Raises NotLive."""
        self._check_heap()
        target = next(iter(self._tracked()), None)
        if target is None:
            raise NotLive("The program is not being tracked any more: its heap cannot be looked at.")
        regions = tuple(target.space.heap_regions)
        addresses = self._tracking.live_set().addresses
        blocks = []
        for region in regions:
            inside = addresses[(addresses >= region.base) & (addresses < region.base + region.size_bytes)]
            blocks += [int(inside.min())] if inside.size else []
        with ProcessMemory(target.pid) as memory:
            found, whole = chains(memory, blocks, [region.base for region in regions])
        return [(chain, socket) for chain in found if (socket := target.space.socket(chain.first)) is not None], whole

    def _in_registers(self, start: int, end: int, stopped: Mapping[int, Registers]) -> list[Referrer]:
        mask = int(ADDRESS_MASK)
        return [
            Referrer(0, pid, f"a register of thread {tid}", (word & mask) - start)
            for pid, seen in stopped.items()
            for tid, words in seen.words.items()
            for word in dict.fromkeys(words)
            if start <= word & mask < end
        ]

    # ---- where to look

    def _tracked(self) -> list[Target]:
        return [target for target in self._group.targets if target.is_tracked]

    def _others(self) -> list[int]:
        """Processes that are not tracked and may hold a pointer all the same: what was let go, who shares the heap, forked children."""
        tracked = [target.pid for target in self._tracked()]
        let_go = [target.pid for target in self._group.targets if target.detached and not target.is_gone()]
        found = [*let_go, *process.sharing_the_heap(tracked), *self._group.offspring.living_pids()]
        return [pid for pid in dict.fromkeys(found) if pid not in tracked]

    def _check_heap(self) -> None:
        tracked = self._tracked()
        if tracked and all(target.cleaned_up for target in tracked):
            raise NotLive("The program has called rte_eal_cleanup: DPDK's heap is gone.", "Ask before it does.")

    def _places(self) -> list[Places]:
        self._check_heap()
        tracked = self._tracked()
        found = [place for target in tracked if (place := self._place(target)) is not None]
        if not found:
            raise NotLive("The program is not being tracked any more: nobody's memory can be looked into.")
        heap = as_ranges(np.concatenate([place.heap for place in found]))
        for number, pid in enumerate(self._others()):
            with contextlib.suppress(TargetEnded):
                found.append(Places(pid, -1 - number, writable_of(pid), heap))
        return found

    def _place(self, target: Target) -> Places | None:
        """Raises NotPermitted."""
        with contextlib.suppress(TargetEnded):
            told = target.call("writable")
            programs = common(without(_ranges(told["ranges"]), _ranges(told["ours"])), writable_of(target.pid))
            regions = tuple(target.space.heap_regions)
            heap = as_ranges([(region.base, region.base + region.size_bytes) for region in regions])
            if (target.pid, regions) not in self._page_tables:
                with ProcessMemory(target.pid) as memory:
                    self._page_tables[target.pid, regions] = page_tables(memory, without(programs, heap), regions)
            return Places(target.pid, target.number, without(programs, self._page_tables[target.pid, regions]), heap)
        return None

    def _registers(self) -> Registers:
        """Of the tracked processes; the threads of the others are not stopped."""
        seen = Registers(unseen=sum(len(registers.threads_of(pid)) for pid in self._others()))
        return sum((registers.read(target.pid) for target in self._tracked()), seen)

    # ---- in words

    def _describe(self, at: int, process: int, blocks: Blocks, source: int, seen: Registers | None) -> str:
        if source != NOWHERE:
            row = blocks.rows[source]
            label = self._names.label_text(int(row["label"]), baseline=bool(row["baseline"]))
            return (
                f"a block of {int(row['size_bytes']):,} bytes of type {label} at {int(row['address']):#x}, "
                f"at offset {at - int(row['address'])}"
            )
        target = next((target for target in self._group.targets if target.number == process), None)
        if target is None:
            return "another process's memory"
        found = None if seen is None else seen.frame_at(at)
        call = "" if found is None else f", in frame {found[1]}, {self._call(*found[1:], process)}"
        thread = self._names.thread_of_stack(at, process)
        if thread is not None:
            return f"the stack of {thread.name} (tid {thread.tid}){call}"
        if found is not None:
            return f"the stack of thread {found[0]}{call}"
        return self._names.variable_at(at, process) or target.space.describe(at).removeprefix("in ").removeprefix("on ")

    def _call(self, number: int, address: int, process: int) -> str:
        """`main at app.c:12`; the innermost call has no return address yet."""
        return self._names.code_at(address if number else address + 1, process)


def _ranges(told: Sequence[tuple[str, int]]) -> Ranges:
    return as_ranges([(int(start, 16), int(start, 16) + int(size)) for start, size in told])
