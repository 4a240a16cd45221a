"""The tracking map: against a plain model on random streams cut anywhere, and one test a rule.

The model keeps a dict of live blocks and a dict of freed ones and takes one event after the other; the map must agree
with it in everything that it can be asked.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from frida_rtetrack.stream.events import EVENT_DTYPE, SIZE_BITS, Api, EventBatch, Kind, Mark
from frida_rtetrack.tracking import blocktable
from frida_rtetrack.tracking.map import (
    BLOCK_DTYPE,
    BadFree,
    BadFreeKind,
    Block,
    Freed,
    FreedBlock,
    Lookup,
    Peak,
    Totals,
    TrackingMap,
)
from frida_rtetrack.tracking.rules import MEMZONE_APIS

NOW_NS = 1_000
A, B, C = 0x1_4000_0000, 0x1_4000_0080, 0x1_4000_0100
"""Three addresses as DPDK hands them out."""


class Event(NamedTuple):
    kind: Kind
    address: int = 0
    size_bytes: int = 0
    thread: int = 0
    stack: int = 0
    label: int = 0
    api: int = 0
    socket: int = -1


def allocated(address: int, size_bytes: int = 64, **more: int) -> Event:
    return Event(Kind.ALLOCATED, address, size_bytes, **({"api": Api.MALLOC} | more))


def freed(address: int, **more: int) -> Event:
    return Event(Kind.FREED, address, **({"api": Api.FREE} | more))


def resize_started(address: int, size_bytes: int, **more: int) -> Event:
    return Event(Kind.RESIZE_STARTED, address, size_bytes, **({"api": Api.REALLOC} | more))


def resize_ended(address: int, size_bytes: int, **more: int) -> Event:
    return Event(Kind.RESIZE_ENDED, address, size_bytes, **({"api": Api.REALLOC} | more))


def baseline_block(address: int, size_bytes: int = 128) -> Event:
    return Event(Kind.BASELINE_BLOCK, address, size_bytes)


BASELINE_STARTED = Event(Kind.MARK, api=Mark.BASELINE_STARTED)


def batch_of(*events: Event) -> EventBatch:
    batch = np.zeros(len(events), EVENT_DTYPE)
    for record, event in zip(batch, events, strict=True):
        record["kind"], record["api"], record["socket"] = event.kind, event.api, event.socket
        record["address"], record["stack"], record["label"] = event.address, event.stack, event.label
        record["size_and_thread"] = event.size_bytes | event.thread << SIZE_BITS
    return batch


def u64(*addresses: int) -> NDArray[np.uint64]:
    return np.array(addresses, np.uint64)


def tracking_map(*, chunk: int = 1 << 16, singly: int = 24, complete: bool = True, kept: int = 1000) -> TrackingMap:
    """A map that handles `chunk` events at once, and takes up to `singly` of them one by one."""
    cut = type("Cut", (TrackingMap,), {"CHUNK_EVENTS": chunk, "SINGLY_AT_MOST": singly})
    return cut(complete=complete, freed_kept=kept)


@pytest.fixture(params=["one by one", "sorted"])
def tracking(request: pytest.FixtureRequest) -> TrackingMap:
    """An empty map that knows every block; both ways of applying a batch must keep every rule."""
    return tracking_map(singly=24 if request.param == "one by one" else 0)


@pytest.fixture(params=["one by one", "sorted"])
def attached(request: pytest.FixtureRequest) -> TrackingMap:
    """An empty map of a program that already ran."""
    return tracking_map(singly=24 if request.param == "one by one" else 0, complete=False)


# ---- the model


class Model:
    """What TrackingMap promises, in the plainest way."""

    def __init__(self, *, complete: bool, kept: int, chunk: int) -> None:
        self.live: dict[int, Block] = {}
        self.freed: dict[int, FreedBlock] = {}
        self.resizes: dict[int, dict] = {}
        self.count: Counter[str] = Counter()
        self.bad: list[BadFree] = []
        self.peak = Peak()
        self.events = 0
        self.complete = self.whole = complete
        self.gap = self.baseline_started = 0
        self.kept, self.chunk = kept, chunk

    def sums(self) -> tuple[int, int]:
        moving = [resize["aside"] for resize in self.resizes.values() if resize["aside"]]
        blocks = [*self.live.values(), *moving]
        return len(blocks), sum(block.size_bytes for block in blocks)

    def note_peak(self, now_ns: int) -> None:
        blocks, size_bytes = self.sums()
        if size_bytes > self.peak.bytes:
            self.peak = Peak(blocks, size_bytes, now_ns, self.events)

    def apply(self, event: Event, now_ns: int) -> None:
        getattr(self, f"on_{event.kind.name.lower()}")(event, now_ns)
        self.note_peak(now_ns)
        self.events += 1
        if self.events % self.chunk == 0 and len(self.freed) > self.kept:
            by_age = sorted(self.freed, key=lambda address: self.freed[address].freed.sequence)
            for address in by_age[: len(by_age) - self.kept // 2]:
                del self.freed[address]
            self.whole = False

    def block(self, e: Event, now_ns: int) -> Block:
        is_baseline = e.kind == Kind.BASELINE_BLOCK
        return Block(
            e.address, e.size_bytes, e.label, e.stack, e.thread, e.api, e.socket, now_ns, self.events, is_baseline
        )

    def put(self, block: Block) -> None:
        old = self.live.get(block.address)
        if old is not None:
            for resize in self.resizes.values():
                if resize["old"] == old:
                    resize["aside"], resize["old"] = old, None
                    break
            else:
                self.count["anomalies"] += not old.baseline
        self.freed.pop(block.address, None)
        self.live[block.address] = block

    def release(self, address: int, event: Event, now_ns: int) -> None:
        call = Freed(event.stack, event.thread, event.api, now_ns, self.events)
        self.freed[address] = FreedBlock(self.live.pop(address, None), call)

    def accused(self, event: Event, now_ns: int) -> bool:
        history = self.freed.get(event.address)
        known = history is not None and history.block is not None and history.freed.sequence >= self.gap
        if not self.complete:
            return False
        kind = BadFreeKind.STRAY if history is None else BadFreeKind.DUPLICATE
        complete = self.complete and (self.whole if history is None else known)
        who = (event.address, self.events, now_ns, event.thread, event.stack, event.api)
        self.bad.append(BadFree(kind, *who, history and history.block, history and history.freed, complete))
        return True

    def on_allocated(self, event: Event, now_ns: int) -> None:
        self.count["allocations"] += 1
        self.count["allocated_bytes"] += event.size_bytes
        self.put(replace(self.block(event, now_ns), baseline=False))

    def on_freed(self, event: Event, now_ns: int) -> None:
        if event.address in self.live:
            block = self.live[event.address]
            if self.complete and block.api in MEMZONE_APIS and event.api != Api.MEMZONE_FREE:
                who = (event.address, self.events, now_ns, event.thread, event.stack, event.api)
                self.bad.append(BadFree(BadFreeKind.MEMZONE, *who, block, None, True))
            self.count["frees"] += 1
            self.count["freed_bytes"] += self.live[event.address].size_bytes
            self.release(event.address, event, now_ns)
        elif not self.accused(event, now_ns):
            self.count["unknown_frees"] += 1
            self.release(event.address, event, now_ns)

    def on_allocation_failed(self, event: Event, now_ns: int) -> None:
        self.count["failed"] += 1
        self.count["failed_bytes"] += event.size_bytes

    def on_mark(self, event: Event, now_ns: int) -> None:
        if event.api == Mark.BASELINE_STARTED:
            self.baseline_started = self.events

    def on_baseline_block(self, event: Event, now_ns: int) -> None:
        history = self.freed.get(event.address)
        if event.address not in self.live and (history is None or history.freed.sequence < self.baseline_started):
            self.count["baseline_blocks"] += 1
            self.count["baseline_bytes"] += event.size_bytes
            self.put(self.block(event, now_ns))

    def on_resize_started(self, event: Event, now_ns: int) -> None:
        self.count["anomalies"] += self.resizes.pop(event.thread, None) is not None
        old = self.live.get(event.address)
        accused = old is None and self.accused(event, now_ns)
        self.resizes[event.thread] = {"started": event, "old": old, "aside": None, "accused": accused}

    def on_resize_ended(self, event: Event, now_ns: int) -> None:
        resize = self.resizes.pop(event.thread, None)
        if resize is None:
            self.count["anomalies"] += 1
            if event.address:
                self.on_allocated(event, now_ns)
            return
        started, old, aside = resize["started"], resize["old"], resize["aside"]
        there = self.live.get(started.address)
        if aside and event.address in (0, started.address):  # cannot be: the block is lost
            self.count["anomalies"] += 1
            if event.address:
                self.on_allocated(event, now_ns)
        elif event.address == 0:
            if old or aside:
                self.count["failed"] += 1
                self.count["failed_bytes"] += started.size_bytes
        elif aside:
            self.resized(event, aside)
        elif self.still_there(resize):
            if event.address != started.address:
                self.release(started.address, event, now_ns)
            self.resized(event, there)
        else:
            self.count["anomalies"] += old is not None
            if not old and not resize["accused"] and event.address != started.address and not there:
                self.count["unknown_frees"] += 1
                self.release(started.address, event, now_ns)
            self.on_allocated(event, now_ns)

    def still_there(self, resize: dict) -> bool:
        there = self.live.get(resize["started"].address)
        if resize["old"]:
            return there is not None and there.sequence == resize["old"].sequence
        # Unless it was accused: the baseline may have told of it since.
        return there is not None and there.baseline and not resize["accused"]

    def resized(self, event: Event, old: Block) -> None:
        growth = event.size_bytes - old.size_bytes
        self.count["resizes"] += 1
        self.count["allocated_bytes"] += max(growth, 0)
        self.count["freed_bytes"] += max(-growth, 0)
        resizes = old.resizes + 1
        new = replace(
            old, address=event.address, size_bytes=event.size_bytes, resizes=resizes, resize_stack=event.stack
        )
        if event.address == old.address and self.live.get(old.address) == old:
            # Another thread's resize of the same block goes on with what the block is now.
            for resize in self.resizes.values():
                if resize["old"] == old:
                    resize["old"] = new
            self.live[event.address] = new
        else:
            self.put(new)

    # What is no event.

    def insert_baseline(self, blocks: dict[int, int], since: int, now_ns: int) -> None:
        for address, size_bytes in blocks.items():
            freed = self.freed.get(address)
            if address not in self.live and (freed is None or freed.freed.sequence < since):
                self.count["baseline_blocks"] += 1
                self.count["baseline_bytes"] += size_bytes
                self.put(Block(address, size_bytes, 0, 0, 0, 0, -1, now_ns, self.events, True))
        self.note_peak(now_ns)

    def forget(self, blocks: list[Block]) -> None:
        for block in blocks:
            if block.address in self.live and self.live[block.address].sequence == block.sequence:
                self.whole = False
                del self.live[block.address]


def assert_same(tracking: TrackingMap, model: Model, asked: list[int]) -> None:
    live = {int(row["address"]): block_of(row) for row in tracking.live()}
    assert live == model.live
    assert (tracking.live_blocks, tracking.live_bytes) == model.sums()
    assert tracking.live_blocks == len(live) + tracking.moving_blocks
    assert tracking.totals == Totals(**model.count)
    assert tracking.peak == model.peak
    assert tracking.events == model.events
    assert tracking.freed_blocks == len(model.freed)
    for address in asked:
        found = tracking.find(address)
        assert found.freed == model.freed.get(address)
        if address in model.live:
            assert (found.block, found.offset) == (model.live[address], 0)


def block_of(row: np.void) -> Block:
    return Block(**{name: row[name].item() for name in BLOCK_DTYPE.names})


# ---- against the model

REGULAR = [A + 64 * i for i in range(3)]
ODD = [0x1, A + 8, (1 << 48) + A, 2**64 - 64]
ADDRESSES = REGULAR + ODD

Step = Event | tuple
address = st.sampled_from(REGULAR * 5 + ODD)
few_bytes = st.integers(0, 300)
thread = st.integers(0, 2)
plain = st.tuples(st.sampled_from([Kind.ALLOCATED, Kind.FREED]), address, few_bytes, thread).map(lambda e: Event(*e))
anything = st.tuples(st.sampled_from(Kind), address, few_bytes, thread).map(lambda e: Event(*e))
good_resize = st.tuples(thread, address, address | st.just(0), few_bytes, st.lists(plain, max_size=3)).map(
    lambda r: [resize_started(r[1], r[3], thread=r[0]), *r[4], resize_ended(r[2], r[3], thread=r[0])]
)
in_turn = st.tuples(address, few_bytes, st.integers(1, 9)).map(
    lambda r: [Event((Kind.ALLOCATED, Kind.FREED)[i % 2], r[0], r[1] + i) for i in range(r[2])]
)
aside = st.one_of(
    st.just(("mark_complete",)),
    st.just(("mark_incomplete",)),
    st.tuples(st.just("forget"), st.lists(address, max_size=3), st.integers(0, 1)),
    st.tuples(st.just("insert_baseline"), st.dictionaries(address, few_bytes, max_size=3), st.integers(0, 6)),
    st.just(BASELINE_STARTED),
)
phrases = st.one_of(plain.map(lambda e: [e]), in_turn, good_resize, anything.map(lambda e: [e]))
quiet_streams = st.lists(phrases, max_size=40).map(lambda lists: [step for steps in lists for step in steps])
streams = st.lists(phrases | aside.map(lambda step: [step]), max_size=40).map(
    lambda lists: [step for steps in lists for step in steps]
)
cuts = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def distinct(stream: list[Step]) -> list[Step]:
    """The stream with stacks, labels, sockets and functions that tell which event an answer came from."""
    return [
        step._replace(stack=i + 1, label=3 * i, socket=i % 4 - 1, api=step.api or 1 + i % 14)
        if isinstance(step, Event) and step.kind != Kind.BASELINE_BLOCK
        else step
        for i, step in enumerate(stream)
    ]


def run(stream: list[Step], lengths: list[int], tracking: TrackingMap, model: Model) -> None:
    """Gives the stream to both, to the map in batches of these lengths in turn; time goes on with every step."""
    now_ns, waiting, times, batches, bad = NOW_NS, [], [], 0, []

    def flush() -> None:
        nonlocal batches
        bad.extend(tracking.apply(batch_of(*waiting), np.array(times, np.int64)))
        waiting.clear()
        times.clear()
        batches += 1

    for step in stream:
        if isinstance(step, Event):
            now_ns += 1 + now_ns % 3
            model.apply(step, now_ns)
            waiting.append(step)
            times.append(now_ns)
            if len(waiting) >= lengths[batches % len(lengths)]:
                flush()
            continue
        flush()
        now_ns += 1
        match step:
            case ("forget", addresses, newer):
                blocks = [model.live[address] for address in dict.fromkeys(addresses) if address in model.live]
                blocks = [replace(block, sequence=block.sequence + newer) for block in blocks]
                tracking.forget(blocks)
                model.forget(blocks)
            case ("insert_baseline", sizes, ago):
                since = max(model.events - ago, 0)
                tracking.insert_baseline(u64(*sizes), u64(*sizes.values()), since, now_ns)
                model.insert_baseline(sizes, since, now_ns)
            case (("mark_complete" | "mark_incomplete") as method,):
                getattr(tracking, method)()
                model.complete = method == "mark_complete"
                if not model.complete:
                    model.whole, model.gap = False, model.events
    flush()
    assert bad == model.bad
    assert_same(tracking, model, ADDRESSES)


@settings(max_examples=700, deadline=None, derandomize=True)
@given(
    streams,
    cuts,
    st.sampled_from([4, 16, 64]),
    st.sampled_from([0, 3, 100]),
    st.sampled_from([0, 1, 3, 100]),
    st.booleans(),
)
def test_map_agrees_with_the_model_however_the_stream_is_cut(
    stream: list[Step], lengths: list[int], chunk: int, singly: int, kept: int, complete: bool
) -> None:
    tracking = tracking_map(chunk=chunk, singly=singly, complete=complete, kept=kept)
    run(distinct(stream), lengths, tracking, Model(complete=complete, kept=kept, chunk=chunk))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(quiet_streams)
def test_one_sorted_batch_agrees_with_the_model(stream: list[Step]) -> None:
    tracking = tracking_map(singly=0)
    run(distinct(stream), [1 << 16], tracking, Model(complete=True, kept=1000, chunk=1 << 16))


@pytest.mark.parametrize("kept", [100, 100_000])
@pytest.mark.parametrize("seed", range(3))
def test_a_long_run_with_growth_and_forgetting_agrees_with_the_model(
    seed: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of addresses, mostly in good order, some bad frees and resizes; the table grows from four rows."""
    monkeypatch.setattr(blocktable, "_FIRST_CAPACITY", 4)
    monkeypatch.setattr(blocktable, "_SMALLEST_INDEX_BITS", 3)
    random = np.random.default_rng(seed)
    heap = [A + 64 * i for i in range(3000)]
    live: list[int] = []
    stream: list[Event] = []
    for _ in range(6000):
        dice, size_bytes, at = random.random(), int(random.integers(1, 5000)), heap[random.integers(len(heap))]
        if dice < 0.005:
            stream.append(freed(at))
        elif dice < 0.01 and live:
            old = live.pop()
            stream += [
                resize_started(old, size_bytes, thread=1),
                allocated(at),
                resize_ended(at + 64, size_bytes, thread=1),
            ]
        elif dice < 0.5 or len(live) < 100:
            stream.append(allocated(at, size_bytes))
            live.append(at)
        else:
            stream.append(freed(live.pop(random.integers(len(live)))))
    model = Model(complete=True, kept=kept, chunk=512)
    tracking = tracking_map(chunk=512, kept=kept)
    bad: list[BadFree] = []
    stream = distinct(stream)
    while stream:
        batch, stream = stream[: (n := int(random.integers(1, 1500)))], stream[n:]
        bad += tracking.apply(batch_of(*batch), NOW_NS)
        for event in batch:
            model.apply(event, NOW_NS)
    assert bad == model.bad
    assert len(bad) > 20
    assert_same(tracking, model, heap)


# ---- bad frees


def test_second_free_is_a_duplicate_not_a_stray(tracking: TrackingMap) -> None:
    assert tracking.apply(batch_of(allocated(A, 100, label=8, stack=1, thread=4, socket=1), freed(A, stack=2)), 5) == []
    [bad] = tracking.apply(batch_of(freed(A, stack=3, thread=6)), 9)
    assert bad == BadFree(
        kind=BadFreeKind.DUPLICATE,
        address=A,
        sequence=2,
        timestamp_ns=9,
        thread=6,
        stack=3,
        api=Api.FREE,
        allocated=Block(A, 100, label=8, stack=1, thread=4, api=Api.MALLOC, socket=1, allocated_at_ns=5, sequence=0),
        first_freed=Freed(stack=2, thread=0, api=Api.FREE, timestamp_ns=5, sequence=1),
        history_complete=True,
    )
    assert (tracking.live_blocks, tracking.totals.frees) == (0, 1)


def test_third_free_still_names_the_first(tracking: TrackingMap) -> None:
    bad = tracking.apply(batch_of(allocated(A), freed(A, stack=2), freed(A, stack=3), freed(A, stack=4)), NOW_NS)
    assert [(found.stack, found.first_freed.stack) for found in bad] == [(3, 2), (4, 2)]


def test_free_of_an_address_never_handed_out_is_stray(tracking: TrackingMap) -> None:
    [bad] = tracking.apply(batch_of(allocated(A), freed(B)), NOW_NS)
    assert (bad.kind, bad.address, bad.allocated, bad.first_freed) == (BadFreeKind.STRAY, B, None, None)
    assert bad.history_complete


@pytest.mark.parametrize("odd", ODD)
def test_addresses_that_dpdk_never_hands_out_are_stray(tracking: TrackingMap, odd: int) -> None:
    bad = tracking.apply(batch_of(allocated(A), freed(odd), freed(A), freed(odd)), NOW_NS)
    assert [(found.kind, found.address, found.sequence) for found in bad] == [
        (BadFreeKind.STRAY, odd, 1),
        (BadFreeKind.STRAY, odd, 3),
    ]


def test_address_used_again_between_two_frees_is_no_duplicate(tracking: TrackingMap) -> None:
    once = [allocated(A), freed(A)]
    assert tracking.apply(batch_of(*once, *once), NOW_NS) == []
    assert tracking.apply(batch_of(*once), NOW_NS) == []


def test_duplicate_names_the_latest_block_of_an_address_used_again(tracking: TrackingMap) -> None:
    events = [allocated(A, 1), freed(A, stack=2), allocated(A, 3), freed(A, stack=4), freed(A)]
    [bad] = tracking.apply(batch_of(*events), NOW_NS)
    assert (bad.allocated.size_bytes, bad.first_freed.stack) == (3, 4)


def test_bad_frees_come_in_the_order_of_events(tracking: TrackingMap) -> None:
    events = [freed(C), freed(0x1), freed(A), resize_started(B, 1), freed(0x1)]
    bad = tracking.apply(batch_of(*events), NOW_NS)
    assert [found.sequence for found in bad] == [0, 1, 2, 3, 4]


def test_bad_free_does_not_disturb_the_blocks_around_it(tracking: TrackingMap) -> None:
    tracking.apply(batch_of(allocated(A, 10), freed(A), freed(A), freed(B), allocated(A, 30), allocated(C, 5)), NOW_NS)
    assert (tracking.live_blocks, tracking.live_bytes) == (2, 35)


def test_a_flood_of_bad_frees_takes_time_in_proportion() -> None:
    tracking = TrackingMap()
    addresses = u64(*(A + 64 * i for i in range(10_000)))
    flood = np.repeat(batch_of(freed(0)), 30_000)
    flood["address"] = np.tile(addresses, 3)
    flood["kind"][:10_000] = Kind.ALLOCATED
    started = time.process_time()
    bad = tracking.apply(flood, NOW_NS)
    assert time.process_time() - started < 2  # 0.3 s when it was written
    assert len(bad) == 10_000
    assert {found.kind for found in bad} == {BadFreeKind.DUPLICATE}


def test_forgotten_frees_make_the_verdict_uncertain(tracking: TrackingMap) -> None:
    tracking = tracking_map(chunk=8, singly=tracking.SINGLY_AT_MOST, kept=2)
    pairs = [event for i in range(4) for event in (allocated(A + 64 * i), freed(A + 64 * i))]
    assert tracking.apply(batch_of(*pairs), NOW_NS) == []
    assert tracking.freed_blocks == 1
    oldest, newest = tracking.apply(batch_of(freed(A), freed(A + 64 * 3)), NOW_NS)
    assert (oldest.kind, oldest.history_complete) == (BadFreeKind.STRAY, False)
    assert (newest.kind, newest.history_complete) == (BadFreeKind.DUPLICATE, True)


# ---- resizes


def test_resize_in_place_keeps_the_block_and_its_history(tracking: TrackingMap) -> None:
    tracking.apply(batch_of(allocated(A, 100, label=7, stack=1)), 5)
    tracking.apply(batch_of(resize_started(A, 300, stack=2), resize_ended(A, 300, stack=2)), 9)
    block = tracking.find(A).block
    assert (block.size_bytes, block.label, block.stack, block.allocated_at_ns) == (300, 7, 1, 5)
    assert (block.resizes, block.resize_stack) == (1, 2)
    assert (tracking.live_blocks, tracking.live_bytes, tracking.peak.bytes) == (1, 300, 300)
    assert tracking.totals == Totals(allocations=1, resizes=1, allocated_bytes=300)


def test_resize_that_moves_is_one_block_with_its_history(tracking: TrackingMap) -> None:
    tracking.apply(batch_of(allocated(A, 100, label=7, stack=1, thread=3)), 5)
    tracking.apply(batch_of(resize_started(A, 80, stack=2), resize_ended(B, 80, stack=2)), 9)
    assert tracking.find(B).block == Block(B, 80, 7, 1, 3, Api.MALLOC, -1, 5, 0, resizes=1, resize_stack=2)
    assert (tracking.live_blocks, tracking.live_bytes, tracking.totals.frees) == (1, 80, 0)


def test_free_of_the_address_that_a_resize_moved_from_is_a_duplicate_of_the_resize(tracking: TrackingMap) -> None:
    events = [allocated(A, stack=1), resize_started(A, 80, stack=2), resize_ended(B, 80, stack=2), freed(A, stack=3)]
    [bad] = tracking.apply(batch_of(*events), NOW_NS)
    assert bad.kind is BadFreeKind.DUPLICATE
    assert (bad.allocated.stack, bad.first_freed.stack, bad.first_freed.api) == (1, 2, Api.REALLOC)


def test_failed_resize_changes_nothing(tracking: TrackingMap) -> None:
    tracking.apply(batch_of(allocated(A, 100), resize_started(A, 1 << 40), resize_ended(0, 0)), NOW_NS)
    assert tracking.find(A).block.size_bytes == 100
    assert tracking.totals == Totals(allocations=1, failed=1, allocated_bytes=100, failed_bytes=1 << 40)
    assert tracking.apply(batch_of(freed(A)), NOW_NS) == []


@pytest.mark.parametrize("batches", [1, 2])
def test_free_of_the_old_address_after_its_resize_has_ended_is_a_duplicate(tracking: TrackingMap, batches: int) -> None:
    events = [allocated(A), resize_started(A, 80, thread=1), resize_ended(B, 80, thread=1), freed(A, stack=3)]
    parts = np.array_split(batch_of(*events), batches)
    [bad] = [bad for part in parts for bad in tracking.apply(part, NOW_NS)]
    assert (bad.kind, bad.stack) == (BadFreeKind.DUPLICATE, 3)
    assert tracking.totals.anomalies == 0


def test_block_freed_and_its_address_used_again_during_its_resize_is_not_the_new_block(tracking: TrackingMap) -> None:
    events = [
        allocated(A, 10),
        resize_started(A, 400, thread=1),
        freed(A),
        allocated(A, 30),
        resize_ended(B, 400, thread=1),
    ]
    assert tracking.apply(batch_of(*events), NOW_NS) == []
    assert {row["address"]: (row["size_bytes"], row["resizes"]) for row in tracking.live()} == {A: (30, 0), B: (400, 0)}
    assert tracking.totals.anomalies == 1


@pytest.mark.parametrize("batches", [1, 4])
def test_old_address_may_be_handed_out_before_its_resize_has_ended(tracking: TrackingMap, batches: int) -> None:
    events = [
        allocated(A, 100, label=7, stack=1),
        resize_started(A, 400, thread=1),
        allocated(A, 64, label=9, stack=2, thread=2),
        resize_ended(B, 400, thread=1),
    ]
    for part in np.array_split(batch_of(*events), batches):
        assert tracking.apply(part, NOW_NS) == []
    assert (tracking.find(A).block.label, tracking.find(B).block.label) == (9, 7)
    assert (tracking.live_blocks, tracking.live_bytes) == (2, 464)
    assert tracking.totals == Totals(allocations=2, resizes=1, allocated_bytes=464)
    assert tracking.apply(batch_of(freed(A), freed(B)), NOW_NS) == []


def test_block_on_its_way_is_counted_as_live(tracking: TrackingMap) -> None:
    tracking.apply(batch_of(allocated(A, 100), resize_started(A, 400, thread=1), allocated(A, 64)), NOW_NS)
    assert (tracking.live_blocks, tracking.live_bytes, tracking.moving_blocks, len(tracking.live())) == (2, 164, 1, 1)


def test_old_address_may_be_freed_again_before_its_resize_has_ended(tracking: TrackingMap) -> None:
    events = [
        allocated(A, 100),
        resize_started(A, 400, thread=1),
        allocated(A),
        freed(A),
        resize_ended(B, 400, thread=1),
    ]
    assert tracking.apply(batch_of(*events), NOW_NS) == []
    assert tracking.live()["address"].tolist() == [B]
    assert tracking.totals.anomalies == 0


def test_resizes_of_two_threads_do_not_mix(tracking: TrackingMap) -> None:
    events = [allocated(A, 1), allocated(B, 2), resize_started(A, 10, thread=1), resize_started(B, 20, thread=2)]
    events += [resize_ended(C, 20, thread=2), resize_ended(B, 10, thread=1)]
    assert tracking.apply(batch_of(*events), NOW_NS) == []
    assert {row["address"]: row["size_bytes"] for row in tracking.live()} == {C: 20, B: 10}
    assert tracking.totals.resizes == 2


def test_resize_of_a_freed_block_is_accused_when_it_starts(tracking: TrackingMap) -> None:
    events = [allocated(A), freed(A, stack=2), resize_started(A, 80, stack=3), resize_ended(B, 80, stack=3)]
    [bad] = tracking.apply(batch_of(*events), NOW_NS)
    assert (bad.kind, bad.sequence, bad.api, bad.first_freed.stack) == (BadFreeKind.DUPLICATE, 2, Api.REALLOC, 2)
    assert (tracking.find(B).block.stack, tracking.totals.allocations) == (3, 2)


def test_resize_of_an_unknown_address_is_stray_and_its_failure_nothing_more(tracking: TrackingMap) -> None:
    [bad] = tracking.apply(batch_of(resize_started(A, 80), resize_ended(0, 80)), NOW_NS)
    assert (bad.kind, tracking.live_blocks, tracking.totals.failed) == (BadFreeKind.STRAY, 0, 0)


def test_resize_that_its_thread_never_ended_leaves_the_block(tracking: TrackingMap) -> None:
    tracking.apply(batch_of(allocated(A, 100), resize_started(A, 400, thread=1)), NOW_NS)
    assert tracking.apply(batch_of(freed(A)), NOW_NS) == []
    assert tracking.live_blocks == 0


# ---- before the tracking, and after a loss


def test_free_of_a_block_from_before_is_not_accused(attached: TrackingMap) -> None:
    assert attached.apply(batch_of(freed(A), freed(A)), NOW_NS) == []
    assert attached.totals == Totals(unknown_frees=2)
    attached.mark_complete()
    [bad] = attached.apply(batch_of(freed(B)), NOW_NS)
    assert (bad.kind, bad.history_complete) == (BadFreeKind.STRAY, False)


def test_nobody_is_accused_before_the_map_is_complete(attached: TrackingMap) -> None:
    """A call that was under way when the hooks were installed may have handed the address out in between, unseen."""
    assert attached.apply(batch_of(allocated(A), freed(A), freed(A)), NOW_NS) == []
    assert attached.totals.unknown_frees == 1
    attached.mark_complete()
    [bad] = attached.apply(batch_of(freed(A)), NOW_NS)
    assert bad.kind is BadFreeKind.DUPLICATE


def test_free_after_a_loss_is_not_accused_of_what_the_loss_may_explain(tracking: TrackingMap) -> None:
    tracking.apply(batch_of(allocated(A), freed(A)), NOW_NS)
    tracking.mark_incomplete()  # A may have been handed out again
    assert tracking.apply(batch_of(freed(A)), NOW_NS) == []
    assert tracking.totals.unknown_frees == 1


def test_baseline_blocks_are_freed_like_others(attached: TrackingMap) -> None:
    attached.apply(batch_of(BASELINE_STARTED, baseline_block(A, 192), baseline_block(B, 64)), 5)
    attached.mark_complete()
    assert attached.find(A).block == Block(A, 192, 0, 0, 0, 0, -1, 5, 1, baseline=True)
    assert (attached.live_blocks, attached.live_bytes, attached.peak.bytes) == (2, 256, 256)
    assert attached.apply(batch_of(freed(A, stack=1)), NOW_NS) == []
    [bad] = attached.apply(batch_of(freed(A, stack=2)), NOW_NS)
    assert (bad.kind, bad.allocated.baseline, bad.first_freed.stack) == (BadFreeKind.DUPLICATE, True, 1)
    assert attached.totals == Totals(baseline_blocks=2, baseline_bytes=256, frees=1, freed_bytes=192)


def test_baseline_does_not_replace_a_block_whose_allocation_was_seen(attached: TrackingMap) -> None:
    attached.apply(batch_of(BASELINE_STARTED, allocated(A, 100, stack=3), baseline_block(A, 192)), NOW_NS)
    assert (attached.find(A).block.stack, attached.live_bytes) == (3, 100)


@pytest.mark.parametrize("batches", [1, 3])
def test_block_freed_while_the_baseline_was_taken_stays_freed(attached: TrackingMap, batches: int) -> None:
    events = [BASELINE_STARTED, allocated(B), freed(B), freed(A), baseline_block(A), baseline_block(B)]
    for part in np.array_split(batch_of(*events), batches):
        assert attached.apply(part, NOW_NS) == []
    assert attached.live_blocks == 0


def test_block_freed_before_the_baseline_and_live_in_it_is_live(attached: TrackingMap) -> None:
    attached.apply(batch_of(allocated(A), freed(A), BASELINE_STARTED, baseline_block(A, 192)), NOW_NS)
    assert attached.find(A).block.baseline


def test_allocation_under_way_during_the_baseline_is_no_anomaly(attached: TrackingMap) -> None:
    attached.apply(batch_of(BASELINE_STARTED, baseline_block(A, 192), allocated(A, 100, stack=3)), NOW_NS)
    assert attached.find(A).block.stack == 3
    assert (attached.live_blocks, attached.live_bytes, attached.totals.anomalies) == (1, 100, 0)


def test_resize_under_way_during_the_baseline_is_one_block(attached: TrackingMap) -> None:
    attached.apply(batch_of(BASELINE_STARTED, resize_started(A, 400), baseline_block(A, 192)), NOW_NS)
    attached.apply(batch_of(resize_ended(B, 400)), NOW_NS)
    assert attached.live()[["address", "size_bytes", "baseline"]].tolist() == [(B, 400, True)]


def test_address_handed_out_while_live_replaces_the_block_and_is_counted(tracking: TrackingMap) -> None:
    assert tracking.apply(batch_of(allocated(A, 100), allocated(A, 30, stack=2)), NOW_NS) == []
    assert (tracking.live_blocks, tracking.live_bytes, tracking.peak.bytes) == (1, 30, 100)
    assert (tracking.find(A).block.stack, tracking.totals.anomalies) == (2, 1)


def test_differences_name_what_either_side_lacks() -> None:
    tracking = tracking_map()
    tracking.apply(batch_of(allocated(A), allocated(B), freed(B)), NOW_NS)
    missing, unexpected = tracking.differences(u64(C, B))
    assert (missing.tolist(), unexpected.tolist()) == ([B, C], [A])


def test_forgotten_block_is_unknown_and_no_free() -> None:
    tracking = tracking_map()
    tracking.apply(batch_of(allocated(A, 10), allocated(B, 20)), NOW_NS)
    assert tracking.forget([tracking.find(A).block]) == 1
    assert (tracking.live_blocks, tracking.live_bytes, tracking.totals.frees) == (1, 20, 0)
    assert tracking.find(A) == Lookup(None, 0, None)
    [bad] = tracking.apply(batch_of(freed(A)), NOW_NS)
    assert (bad.kind, bad.history_complete) == (BadFreeKind.STRAY, False)


def test_forgetting_a_block_spares_the_one_that_lives_there_now() -> None:
    tracking = tracking_map()
    tracking.apply(batch_of(allocated(A, 10)), NOW_NS)
    seen = tracking.find(A).block
    tracking.apply(batch_of(freed(A), allocated(A, 20)), NOW_NS)
    assert tracking.forget([seen]) == 0
    assert tracking.apply(batch_of(freed(A)), NOW_NS) == []


def test_insert_baseline_does_not_bring_back_what_was_freed_since(attached: TrackingMap) -> None:
    attached.apply(batch_of(freed(A), allocated(B), freed(B), freed(C)), NOW_NS)
    assert attached.insert_baseline(u64(A, B, C), u64(1, 2, 3), 1, 7) == 1
    assert {int(row["address"]) for row in attached.live()} == {A}


def test_insert_baseline_leaves_live_blocks_alone() -> None:
    tracking = tracking_map()
    tracking.apply(batch_of(allocated(A, 10), allocated(B, 20), freed(B)), NOW_NS)
    assert tracking.insert_baseline(u64(C, A, B, C), u64(1, 2, 4, 1), 3, 7) == 2
    assert {row["address"]: (row["size_bytes"], row["baseline"]) for row in tracking.live()} == {
        A: (10, False),
        B: (4, True),
        C: (1, True),
    }
    assert (tracking.live_blocks, tracking.live_bytes, tracking.peak.bytes) == (3, 15, 30)


# ---- numbers and answers


def test_high_watermark_is_the_first_moment_of_most_bytes_within_a_batch(tracking: TrackingMap) -> None:
    first = [allocated(A, 100), allocated(B, 50), freed(A), allocated(A, 70), freed(A), allocated(A, 100), freed(B)]
    tracking.apply(batch_of(*first), 5)
    assert tracking.peak == Peak(blocks=2, bytes=150, timestamp_ns=5, sequence=1)
    tracking.apply(batch_of(allocated(C, 50), allocated(B, 0), freed(A), freed(C)), 9)
    assert tracking.peak == Peak(blocks=2, bytes=150, timestamp_ns=5, sequence=1)
    tracking.apply(batch_of(allocated(C, 200)), 11)
    assert tracking.peak == Peak(blocks=2, bytes=200, timestamp_ns=11, sequence=11)


def test_failed_allocations_are_counted_however_much_they_asked_for(tracking: TrackingMap) -> None:
    most = (1 << SIZE_BITS) - 1
    failed = np.repeat(batch_of(Event(Kind.ALLOCATION_FAILED, 0, most)), 60_000)
    tracking.apply(failed, NOW_NS)
    assert tracking.totals == Totals(failed=60_000, failed_bytes=60_000 * most)


def test_unknown_kinds_and_marks_only_count_as_events(tracking: TrackingMap) -> None:
    batch = batch_of(allocated(A), Event(Kind.MARK, A, api=Mark.SIGNAL), freed(A), freed(B))
    batch["kind"][3] = 200
    assert tracking.apply(batch, NOW_NS) == []
    assert (tracking.events, tracking.live_blocks) == (4, 0)


def test_call_sites_sum_up_live_blocks_by_stack() -> None:
    tracking = tracking_map()
    tracking.apply(batch_of(allocated(A, 10, stack=1, label=4), allocated(B, 20, stack=2, socket=1)), 5)
    tracking.apply(batch_of(allocated(C, 30, stack=1, label=4), freed(B), allocated(B, 25, stack=3, socket=1)), 9)
    assert tracking.call_sites().tolist() == [(1, 2, 40, 5), (3, 1, 25, 9)]
    assert tracking.call_sites(allocated_until_ns=5).tolist() == [(1, 1, 10, 5)]
    assert tracking.by_label()[["label", "blocks", "bytes"]].tolist() == [(4, 2, 40), (0, 1, 25)]
    assert tracking.by_socket()[["socket", "blocks", "bytes"]].tolist() == [(-1, 2, 40), (1, 1, 25)]
    assert tracking_map().call_sites().size == 0


def test_find_tells_which_live_block_an_address_is_inside_of() -> None:
    tracking = tracking_map()
    tracking.apply(batch_of(allocated(B, 64, stack=1), freed(B, stack=2), allocated(A, 0x100, stack=3)), NOW_NS)
    found = tracking.find(B)  # freed once, and now inside a larger block
    assert (found.block.stack, found.offset, found.freed.freed.stack) == (3, 0x80, 2)
    assert tracking.find(A).offset == 0
    assert tracking.find(A + 0x100) == Lookup(None, 0, None)


def test_snapshot_does_not_change_while_tracking_goes_on() -> None:
    tracking = tracking_map()
    tracking.apply(batch_of(allocated(A, 10, label=1)), NOW_NS)
    snapshot = tracking.live()
    tracking.apply(batch_of(freed(A), allocated(A, 20, label=2)), NOW_NS)
    assert snapshot[["address", "size_bytes", "label"]].tolist() == [(A, 10, 1)]


def test_snapshots_taken_by_another_thread_are_those_between_two_batches() -> None:
    tracking = tracking_map(chunk=64)
    pool = [A + 64 * i for i in range(200)]
    grow, shrink = batch_of(*(allocated(at) for at in pool)), batch_of(*(freed(at) for at in pool))
    seen, done = set(), threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add((len(tracking.live()), tracking.find(A).block is None))

    looker = threading.Thread(target=look)
    looker.start()
    for _ in range(100):
        tracking.apply(grow, NOW_NS)
        tracking.apply(shrink, NOW_NS)
    done.set()
    looker.join()
    assert {blocks for blocks, _ in seen} <= {0, len(pool)}


def test_batch_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="EVENT_DTYPE"):
        tracking_map().apply(np.zeros(3, np.uint64), NOW_NS)


def test_an_empty_batch_is_nothing(tracking: TrackingMap) -> None:
    assert tracking.apply(batch_of(), NOW_NS) == []
    assert (tracking.events, tracking.live().size, tracking.totals) == (0, 0, Totals())


def test_rte_free_of_a_memzone_is_reported_and_still_frees_it() -> None:
    tracking = TrackingMap()
    tracking.apply(batch_of(allocated(A, 100, api=Api.MEMZONE_RESERVE), allocated(B, 100, api=Api.MEMZONE_RESERVE)), 0)
    (bad,) = tracking.apply(batch_of(freed(A), freed(B, api=Api.MEMZONE_FREE)), 0)
    assert (bad.kind, bad.address, bad.allocated and bad.allocated.size_bytes) == (BadFreeKind.MEMZONE, A, 100)
    assert tracking.live_blocks == 0


def test_rte_free_of_a_memzone_is_reported_among_many_events_too() -> None:
    tracking = TrackingMap()
    noise = [event for i in range(100) for event in (allocated(B + 64 * i), freed(B + 64 * i))]
    tracking.apply(batch_of(*noise, allocated(A, 100, api=Api.MEMZONE_RESERVE_ALIGNED), *noise), 0)
    assert [bad.kind for bad in tracking.apply(batch_of(*noise, freed(A), *noise), 0)] == [BadFreeKind.MEMZONE]


def test_the_block_around_an_address_is_the_one_that_was_live_at_that_moment() -> None:
    tracking = TrackingMap()
    found = tracking.apply(batch_of(allocated(A, 1000), freed(A + 64), freed(A), freed(A + 128)), 0)
    inside, outside = tracking.containing(found)
    assert inside is not None
    assert (inside.address, inside.size_bytes) == (A, 1000)
    assert outside is None
