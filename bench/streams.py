"""Streams of events for the tracking map alone, already in memory: how many events a second it takes of each."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.stream.events import EVENT_DTYPE, SIZE_BITS, EventBatch, Kind
from frida_rtetrack.stream.ring import BATCH_EVENTS
from frida_rtetrack.tracking import mapkernel
from frida_rtetrack.tracking.map import TrackingMap

HEAP = 0x1_0000_0000
BLOCK_BYTES = 192
THREADS = 16


def figures() -> list[dict[str, object]]:
    """A row a stream."""
    how = "numpy" if mapkernel.load() is None else "compiled"
    streams = {
        "tracking map alone": ([], few_addresses()),
        "tracking map alone, random churn of 1,000,000 blocks": churn(1_000_000),
        "tracking map alone, random churn of 100,000 blocks": churn(100_000),
        "tracking map alone, resizes that move": resizes(moving=True),
        "tracking map alone, resizes in place": resizes(moving=False),
    }
    return [
        {"what": what, "map": how, "events_a_second": rate(filling, batches)}
        for what, (filling, batches) in streams.items()
    ]


def rate(filling: Iterable[EventBatch], batches: list[EventBatch]) -> int:
    """Events a second of CPU time in `batches`, applied in order after `filling` and the first of them."""
    tracking = TrackingMap()
    for batch in (*filling, batches[0]):
        tracking.apply(batch, 0)
    started = time.thread_time()
    for batch in batches[1:]:
        if tracking.apply(batch, 0):
            raise RuntimeError("the benchmark's stream has bad frees")
    return int(sum(batch.size for batch in batches[1:]) / (time.thread_time() - started))


def few_addresses() -> list[EventBatch]:
    """Allocation and free in turn of 64 addresses, one size, one thread."""
    events = np.zeros(BATCH_EVENTS, EVENT_DTYPE)
    events["kind"][0::2], events["kind"][1::2] = Kind.ALLOCATED, Kind.FREED
    events["address"] = HEAP + 128 * (np.arange(BATCH_EVENTS, dtype=np.uint64) // 2 % 64)
    events["size_and_thread"][0::2] = 64
    return [events] * 160


def churn(live: int, count: int = 60) -> tuple[list[EventBatch], list[EventBatch]]:
    """`live` blocks, of which a random one is freed and another one allocated; freed addresses are used again in turn. In `count` batches."""
    random = np.random.default_rng(1)
    addresses = HEAP + random.permutation(live + live // 5).astype(np.uint64) * BLOCK_BYTES
    occupied, free = addresses[:live].copy(), addresses[live:]
    pairs = min(BATCH_EVENTS // 2, live // 2)
    batches = []
    for _ in range(count):
        chosen = random.choice(live, pairs, replace=False)
        gone = occupied[chosen].copy()
        queue = np.concatenate((free, gone))
        occupied[chosen], free = queue[:pairs], queue[pairs:]
        batches.append(in_turn(random, Kind.FREED, gone, Kind.ALLOCATED, queue[:pairs]))
    return [allocations(random, addresses[:live])], batches


def resizes(*, moving: bool) -> tuple[list[EventBatch], list[EventBatch]]:
    """Of 100,000 blocks random ones are resized, by threads in turn."""
    random = np.random.default_rng(1)
    live, pairs = 100_000, BATCH_EVENTS // 2
    addresses = HEAP + np.arange(2 * live, dtype=np.uint64) * BLOCK_BYTES
    occupied, free = addresses[:live].copy(), addresses[live:]
    batches = []
    for _ in range(20):
        chosen = random.choice(live, pairs, replace=False)
        old = new = occupied[chosen].copy()
        if moving:
            new, free = free[:pairs], np.concatenate((free[pairs:], old))
            occupied[chosen] = new
        batch = in_turn(random, Kind.RESIZE_STARTED, old, Kind.RESIZE_ENDED, new)
        batch["size_and_thread"][1::2] = batch["size_and_thread"][0::2]
        batches.append(batch)
    return [allocations(random, addresses[:live])], batches


def allocations(random: np.random.Generator, addresses: NDArray[np.uint64]) -> EventBatch:
    """One of each of `addresses` (n,), mixed sizes."""
    events = np.zeros(addresses.size, EVENT_DTYPE)
    events["kind"], events["address"] = Kind.ALLOCATED, addresses
    events["size_and_thread"] = random.integers(1, 4096, addresses.size)
    return events


def in_turn(
    random: np.random.Generator, kind: Kind, addresses: NDArray[np.uint64], then: Kind, others: NDArray[np.uint64]
) -> EventBatch:
    """Events (2n,) of the one kind and the other in turn, mixed sizes, stacks and threads."""
    events = np.zeros(2 * addresses.size, EVENT_DTYPE)
    events["kind"][0::2], events["kind"][1::2] = kind, then
    events["address"][0::2], events["address"][1::2] = addresses, others
    events["stack"] = random.integers(1, 1000, events.size)
    threads = np.arange(events.size, dtype=np.uint64) // 2 % THREADS + 1
    events["size_and_thread"] = threads << np.uint64(SIZE_BITS)
    events["size_and_thread"] |= random.integers(1, 4096, events.size).astype(np.uint64)
    return events
