"""Batches of events applied by the compiled kernel, which hands what is out of the ordinary back, event by event.

A resize that has started is known to one side only: to the kernel until something out of the ordinary happens to any
address, to Rules.resizes from then on.
"""

from __future__ import annotations

import numpy as np

from frida_rtetrack.stream.events import EventBatch, Times
from frida_rtetrack.tracking import mapkernel
from frida_rtetrack.tracking.blocktable import BlockTable
from frida_rtetrack.tracking.mapkernel import Kernel, Stop
from frida_rtetrack.tracking.rules import BadFree, Call, Changes, Resize, Rules


class CompiledBatches:
    """Applies events to `table` by `rules`, most of them with `compiled`."""

    def __init__(self, compiled: Kernel, table: BlockTable, rules: Rules) -> None:
        """`rules` judge on the rows of `table`."""
        self._kernel = compiled
        self._table = table
        self._rules = rules
        self._open = 0
        self._resizes = np.zeros(mapkernel.OPEN_RESIZES, mapkernel.RESIZE_DTYPE)
        self._resize_of = np.zeros(mapkernel.THREADS, np.uint16)

    def apply(self, events: EventBatch, times: Times, sequence: int, bad: list[BadFree]) -> Changes:
        """Take `events` (n,), n <= 2^18, the first of which has the number `sequence`; bad frees go to `bad`."""
        events, times = np.ascontiguousarray(events), np.ascontiguousarray(times)
        changes = Changes(top_sequence=sequence)
        at = 0
        while at < events.size:
            run = self._run(sequence + at, times.ctypes.data + at * times.itemsize)
            table = self._table.for_kernel()
            at += self._kernel.apply(table, run, events, at)
            self._table.added(table.used)
            self._open = run.open
            self._count(run)
            changes = changes.then(Changes(*(getattr(run, name) for name in mapkernel.CHANGES)))
            if run.stop == Stop.NEEDS_ROOM:
                self._table.make_room()
            elif run.stop == Stop.FOR_THE_RULES:
                call = Call.of(events[at].item(), sequence + at, times.item(at))
                changes = changes.then(self._take(call, bad))
                at += 1
        return changes

    def _run(self, sequence: int, times_ns: int) -> mapkernel.Run:
        return mapkernel.Run(
            resizes=self._resizes.ctypes.data,
            resize_of=self._resize_of.ctypes.data,
            open=self._open,
            sequence=sequence,
            times_ns=times_ns,
            baseline_sequence=self._rules.baseline_sequence,
            complete=self._rules.complete,
        )

    def _count(self, run: mapkernel.Run) -> None:
        for counted, name in mapkernel.COUNTS.items():
            amount = getattr(run, counted)
            if amount:
                self._rules.count[name] += amount

    def _take(self, call: Call, bad: list[BadFree]) -> Changes:
        """Let the rules take one event, with every resize known to them."""
        if self._open:
            self.hand_over_resizes()
        size_bytes, blocks = self._rules.take(call, bad)
        self._resize_of[call.thread] = mapkernel.WITH_THE_RULES if call.thread in self._rules.resizes else 0
        return Changes(size_bytes, blocks, size_bytes, blocks, call.sequence)

    def take_over_resizes(self) -> None:
        """Learns of resizes that the rules were told of."""
        for thread in self._rules.resizes:
            self._resize_of[thread] = mapkernel.WITH_THE_RULES

    def hand_over_resizes(self) -> None:
        """Lets the rules know every resize that has started.

        Those that they know already have all started before: the order stays that of starting.
        """
        known = self._resizes[: self._open]
        for address, size_bytes, block, _, thread in known[np.argsort(known["started"])].tolist():
            self._rules.resizes[thread] = Resize(address, size_bytes, block)
            self._resize_of[thread] = mapkernel.WITH_THE_RULES
        self._open = 0
