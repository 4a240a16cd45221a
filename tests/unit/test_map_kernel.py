"""The compiled kernel of the tracking map against numpy: whatever the events are, and however they are cut, one answer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frida_rtetrack.stream.events import EVENT_DTYPE, SIZE_BITS, Api, EventBatch, Kind, Mark
from frida_rtetrack.tracking import blocktable, mapkernel
from frida_rtetrack.tracking.map import BadFree, TrackingMap

NATIVE = mapkernel.LIBRARY.parent
PROGRAMS = Path(__file__).parents[1] / "native"
SANITIZERS = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
HEAP = 0x1_4000_0000


def tracking_map(
    found: mapkernel.Kernel | None, *, complete: bool, chunk: int = 1 << 16, kept: int = 1000
) -> TrackingMap:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapkernel, "load", lambda: found)
        return type("Cut", (TrackingMap,), {"CHUNK_EVENTS": chunk, "SINGLY_AT_MOST": 3})(
            complete=complete, freed_kept=kept
        )


def applied(tracking: TrackingMap, events: EventBatch, lengths: list[int]) -> list[BadFree]:
    """Gives it the events in batches of these lengths in turn."""
    bad, at, number = [], 0, 0
    while at < events.size:
        length = lengths[number % len(lengths)]
        bad += tracking.apply(events[at : at + length], 1000 + at // 64)
        at, number = at + length, number + 1
    return bad


def assert_same_answers(one: TrackingMap, other: TrackingMap, asked: list[int]) -> None:
    assert np.array_equal(np.sort(one.live(), order="address"), np.sort(other.live(), order="address"))
    for name in ("events", "live_blocks", "live_bytes", "peak", "totals", "freed_blocks", "moving_blocks"):
        assert getattr(one, name) == getattr(other, name), name
    for address in asked:
        found, expected = one.find(address), other.find(address)
        assert found.freed == expected.freed
        assert (found.offset == 0 and found.block) == (expected.offset == 0 and expected.block)


def likely(seed: int, count: int, addresses: int, threads: int) -> EventBatch:
    """Events as a program makes them, with mistakes, and some with anything at all in every field."""
    random = np.random.default_rng(seed)
    events = np.frombuffer(random.bytes(count * EVENT_DTYPE.itemsize), EVENT_DTYPE).copy()
    tame = random.random(count) < 0.97
    kinds = random.choice([*Kind], count, p=[0.35, 0.3, 0.12, 0.12, 0.02, 0.07, 0.02])
    events["kind"][tame] = kinds[tame]
    events["api"][tame] = random.choice([Api.MALLOC, Api.FREE, Api.MEMZONE_RESERVE, Api.MEMZONE_FREE], count)[tame]
    events["api"][tame & (events["kind"] == Kind.MARK)] = Mark.BASELINE_STARTED
    where = np.where(random.random(count) < 0.03, 0, HEAP + 64 * random.integers(0, addresses, count))
    events["address"][tame] = where[tame]
    sizes_and_threads = random.integers(0, 5000, count) | random.integers(0, threads, count) << SIZE_BITS
    events["size_and_thread"][tame] = sizes_and_threads[tame]
    return events


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.integers(0, 2**32),
    st.integers(1, 600),
    st.sampled_from([1, 3, 40, 400]),
    st.sampled_from([1, 3, 1 << 20]),
    st.lists(st.integers(1, 300), min_size=1, max_size=8),
    st.lists(st.integers(1, 300), min_size=1, max_size=8),
    st.booleans(),
)
def test_kernel_and_numpy_give_the_same_answers(
    map_kernel: mapkernel.Kernel,
    seed: int,
    count: int,
    addresses: int,
    threads: int,
    lengths: list[int],
    other_lengths: list[int],
    complete: bool,
) -> None:
    """The kernel cut one way, and numpy at the same places (time differs from batch to batch) and another way."""
    events = likely(seed, count, addresses, threads)
    asked = np.unique(events["address"]).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocktable, "_FIRST_CAPACITY", 4)
        patch.setattr(blocktable, "_SMALLEST_INDEX_BITS", 3)
        ways = [tracking_map(found, complete=complete, chunk=64, kept=20) for found in (map_kernel, None)]
    bad, expected = (applied(way, events, lengths) for way in ways)
    assert bad == expected
    assert_same_answers(*ways, asked)
    for way in ways:
        way.mark_complete()
    bad, expected = (applied(way, events[::-1], other_lengths) for way in ways)  # not contiguous
    assert bad == expected
    assert_same_answers(*ways, asked)


def test_more_resizes_at_once_than_the_kernel_follows(map_kernel: mapkernel.Kernel) -> None:
    count = 3 * mapkernel.OPEN_RESIZES
    events = np.zeros(3 * count, EVENT_DTYPE)
    events["kind"] = np.repeat([Kind.ALLOCATED, Kind.RESIZE_STARTED, Kind.RESIZE_ENDED], count)
    events["address"] = HEAP + 64 * np.arange(3 * count, dtype=np.uint64) % (64 * count)
    events["address"][2 * count :] += np.uint64(64 * count)
    events["size_and_thread"] = np.tile(np.arange(count, dtype=np.uint64) << np.uint64(SIZE_BITS), 3) + np.uint64(100)
    events["size_and_thread"][count:] += np.uint64(50)
    tracking = tracking_map(map_kernel, complete=True)
    assert tracking.apply(events, 7) == []
    assert (tracking.totals.resizes, tracking.totals.anomalies) == (count, 0)
    assert (tracking.live_blocks, tracking.live_bytes, tracking.peak.blocks) == (count, 150 * count, count)
    assert set(tracking.live()["resizes"].tolist()) == {1}


def test_sizes_as_large_as_they_can_be_do_not_overflow(map_kernel: mapkernel.Kernel) -> None:
    count, most = 1 << 20, (1 << SIZE_BITS) - 1
    events = np.zeros(count, EVENT_DTYPE)
    events["kind"], events["size_and_thread"] = Kind.ALLOCATED, most
    events["address"] = HEAP + 64 * np.arange(count, dtype=np.uint64)
    tracking = tracking_map(map_kernel, complete=True)
    assert tracking.apply(events, 7) == []
    assert (tracking.live_bytes, tracking.peak.bytes, tracking.totals.allocated_bytes) == (count * most,) * 3


def test_a_library_that_is_no_kernel_of_this_version_is_refused(
    map_kernel: mapkernel.Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapkernel, "LIBRARY", tmp_path / "map_kernel.so")
    assert mapkernel.load.__wrapped__() is None
    for source in ("int other;", "unsigned map_kernel_version(void) { return 99; }"):
        (tmp_path / "other.c").write_text(source)
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-o", tmp_path / f"{len(source)}.so", tmp_path / "other.c"], check=True
        )
        with pytest.raises(OSError, match=r"kernel of|version"):
            mapkernel.Kernel(tmp_path / f"{len(source)}.so")


@pytest.mark.usefixtures("map_kernel")
def test_any_event_whatsoever_is_safe(tmp_path: Path) -> None:
    """Under the address and undefined behaviour sanitizers; the table stays whole."""
    program = tmp_path / "map_fuzz"
    build = ["gcc", *SANITIZERS, "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", PROGRAMS / "map_fuzz.c", "-o", program]
    subprocess.run(build, check=True, timeout=120)
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    result = subprocess.run([program, "20"], capture_output=True, text=True, env=environment, timeout=120)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stdout + result.stderr[-4000:]


def of(kind: Kind, address: int, stack: int, label: int = 0) -> np.void:
    event = np.zeros((), EVENT_DTYPE)
    event["kind"], event["address"], event["stack"], event["label"] = kind, address, stack, label
    event["size_and_thread"] = 64
    return event[()]


@pytest.mark.parametrize("compiled", [True, False], ids=["kernel", "numpy"])
@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
def test_the_last_tenancies_of_an_address_are_kept_and_no_others(
    map_kernel: mapkernel.Kernel, compiled: bool, at_once: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapkernel, "load", lambda: map_kernel if compiled else None)
        tracking = TrackingMap()
    second = 10**9
    events = []
    for tenant in range(1, 6):
        events += [of(Kind.ALLOCATED, HEAP, tenant, 10 * tenant), of(Kind.FREED, HEAP, 100 + tenant)]
        events += [of(Kind.ALLOCATED, HEAP + 64 * tenant, 7)]
    if at_once:
        tracking.apply(np.array(events), np.arange(len(events)) * second // 3)
    else:
        for at, event in enumerate(events):
            tracking.apply(np.array([event]), at * second // 3)
    (bad,) = tracking.apply(np.array([of(Kind.FREED, HEAP, 200)]), 9 * second)
    assert bad.first_freed is not None and bad.first_freed.stack == 105
    assert [(each.stack, each.label, each.free_stack) for each in bad.earlier] == [(4, 40, 104), (3, 30, 103)]
    for each, freed_at in zip(bad.earlier, (10, 7), strict=True):
        assert abs(each.freed_at_ns - freed_at * second // 3) < 3_000_000
    tracking.apply(np.array([of(Kind.ALLOCATED, HEAP, 6, 60)]), 9 * second)
    assert [each.stack for each in tracking.find(HEAP).earlier] == [5, 4, 3]
    assert tracking.find(HEAP + 64).earlier == ()
    tracking.apply(np.array([of(Kind.FREED, HEAP + 64, 8)]), 9 * second)
    assert tracking.find(HEAP + 64).earlier == ()


def test_what_was_forgotten_of_one_address_is_not_told_of_another(map_kernel: mapkernel.Kernel) -> None:
    tracking = tracking_map(map_kernel, complete=True, chunk=64, kept=4)
    for address in range(HEAP, HEAP + 64 * 400, 64):
        pair = [of(Kind.ALLOCATED, address, 1), of(Kind.FREED, address, 2)]
        tracking.apply(np.array(2 * pair), 5)
    fresh = [of(Kind.ALLOCATED, address, 3) for address in range(2 * HEAP, 2 * HEAP + 64 * 400, 64)]
    tracking.apply(np.array(fresh), 6)
    for event in fresh:
        assert tracking.find(int(event["address"])).earlier == ()
