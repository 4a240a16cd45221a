"""The host's side of the session memory against a program that writes whatever it likes into it.

Random garbage comes from seeds that a failure names: `RTETRACK_SEEDS=7,8 pytest ...` runs those alone, and a number of
rounds may be given with RTETRACK_FUZZ_ROUNDS.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from written import PATIENCE_SECONDS, WrittenSession, allocated, event, wait_until

from frida_rtetrack.stream.events import (
    EVENT_DTYPE,
    HEADER_DTYPE,
    LABEL_MAX_BYTES,
    MAX_PROCESSES,
    SIZE_BITS,
    THREAD_DTYPE,
    EventBatch,
    Kind,
    Times,
)
from frida_rtetrack.stream.layout import SEALS
from frida_rtetrack.stream.pump import Pump, Subscriber
from frida_rtetrack.stream.ring import HOLE_PATIENCE_S, RingReader, SessionMemory
from frida_rtetrack.symbols import names as names_module
from frida_rtetrack.symbols import symbolizer
from frida_rtetrack.symbols.names import Names

WRITTEN_BY_THE_PROGRAM = (
    "heartbeat_ns", "tail", "head", "lost", "stacks_used", "labels_used", "threads_used", "modules_used",
    "processes_used", "stacks_refused", "labels_refused", "threads_refused", "waits", "heap_owner",
    "clock_ticks", "clock_ns", "clock_rate",
)  # fmt: skip
LAYOUT = (
    "magic", "version", "header_bytes", "total_bytes", "ring_offset", "ring_capacity", "stacks_offset", "stacks_words",
    "labels_offset", "labels_bytes", "threads_offset", "threads_capacity", "modules_offset", "modules_bytes", "clock_source",
)  # fmt: skip
ROUNDS = int(os.environ.get("RTETRACK_FUZZ_ROUNDS", "12"))
SEEDS = [int(seed) for seed in os.environ.get("RTETRACK_SEEDS", "").split(",") if seed] or list(range(1, ROUNDS + 1))
GROWTH_BYTES = 200 << 20
SECONDS = 10.0


@pytest.fixture
def session() -> Iterator[WrittenSession]:
    session = WrittenSession()
    yield session
    session.close()


class Reading(Subscriber):
    """A pump over the session, at work."""

    def __init__(self, session: WrittenSession) -> None:
        self.addresses: list[int] = []
        self.rounds = 0
        self.writing = True
        self.problems: list[str] = []
        self.over = threading.Event()
        self.wake = threading.Event()
        self.pump = Pump(
            session.memory,
            thread_alive=lambda process, tid: True,
            anybody_writes=lambda: self.writing,
            wake=self.wake,
            on_problem=self.problems.append,
            on_end=self.over.set,
        )
        self.pump.subscribe(self)
        self.pump.start()

    def on_events(self, events: EventBatch, first: int, times: Times) -> None:
        self.addresses += events["address"].tolist()

    def on_round(self) -> None:
        self.rounds += 1

    def finish(self, seconds: float = SECONDS) -> None:
        self.writing = False
        self.wake.set()
        assert self.over.wait(seconds), "the reading does not end"


# ---- the size


def test_nobody_can_change_the_size_of_the_session_memory(session: WrittenSession) -> None:
    assert fcntl.fcntl(session.fd, fcntl.F_GET_SEALS) == SEALS
    for size in (0, 4096, session.memory.layout.total_bytes + 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(session.fd, size)


def test_a_file_that_is_no_new_memfd_is_not_cut(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The target says which descriptor it is: one of a file of the host's must not be sized by the host."""
    path = tmp_path_factory.mktemp("file") / "precious"
    path.write_text("precious")
    sealed = os.memfd_create("session")  # F_SEAL_SEAL is set: it can never be sealed
    written = os.memfd_create("session", os.MFD_ALLOW_SEALING)
    os.write(written, b"something")
    with open(path, "r+b") as file:
        for fd in (file.fileno(), sealed, written):
            with pytest.raises(OSError, match=r"Invalid argument|cannot be|can be sealed"):
                SessionMemory.create(fd, 1)
    assert path.read_text() == "precious"
    os.close(sealed)
    os.close(written)


# ---- positions


def test_the_layout_is_the_hosts_own(session: WrittenSession) -> None:
    layout = session.memory.layout
    session.memory._stacks[100:104] = [2 | 3 << 16, 0, 0x1000, 0x2000]
    for name in LAYOUT:
        session.memory.header[name] = np.uint64(0xFFFF_FFFF)
    record = session.memory.stack(100)
    assert record is not None and record.addresses == (0x1000, 0x2000)
    assert session.memory.label(1) == b""
    assert session.memory.modules() == []
    assert session.memory.thread(1).name == "writer"
    assert session.memory.counter("total_bytes") == layout.total_bytes
    assert RingReader(session.memory, lambda process, tid: True).pending() == 0


@pytest.mark.parametrize("head", [0, 3, 1 << 40, (1 << 64) - 1], ids=hex)
def test_a_head_that_cannot_be_ends_the_reading_of_the_ring_with_what_was_good(
    session: WrittenSession, head: int
) -> None:
    reading = Reading(session)
    session.write(*map(allocated, range(10)))
    wait_until(lambda: len(reading.addresses) == 10)
    session.memory.header["head"] = head
    wait_until(reading.pump.deaf.is_set)
    called = threading.Event()
    reading.pump.call_at_head(called.set)
    assert called.is_set()
    reading.pump.sync(time.monotonic() + 5)
    before = session.memory.counter("heartbeat_ns")
    time.sleep(0.6)
    assert session.memory.counter("heartbeat_ns") - before < 0.3e9, "who waits for room must go on"
    reading.finish(2)
    assert reading.addresses == list(range(10))
    assert len(reading.problems) == 1
    assert reading.problems[0].startswith("The program's session memory is damaged (1 ring positions")


@pytest.mark.parametrize("every", [1, 2])
def test_a_ring_full_of_claims_that_nobody_completes_is_passed_over_at_once(
    session: WrittenSession, every: int
) -> None:
    capacity = len(session.memory.ring)
    session.memory.ring["kind"] = Kind.ALLOCATED
    session.memory.ring["commit"][every - 1 :: every] = 0 if every == 1 else 1
    session.memory.header["head"] = capacity
    session.memory._threads["appending"][1:3] = 1
    reading = Reading(session)
    time.sleep(4 * HOLE_PATIENCE_S)
    assert reading.addresses == [], "a thread may still be at it"
    reading.finish()
    assert reading.pump.lost == (capacity if every == 1 else capacity // 2)
    assert len(reading.addresses) == capacity - reading.pump.lost


def test_a_tail_that_somebody_wrote_is_set_right(session: WrittenSession) -> None:
    reading = Reading(session)
    session.write(*map(allocated, range(10)))
    wait_until(lambda: len(reading.addresses) == 10)
    session.memory.header["tail"] = 1 << 63
    wait_until(lambda: session.memory.counter("tail") == 10)
    reading.finish()


# ---- records


def test_events_that_no_agent_writes_are_left_out_and_counted_and_the_others_are_not(session: WrittenSession) -> None:
    reading = Reading(session)
    wrong = event(Kind.ALLOCATED, 2)
    wrong["kind"] = 99
    threadless = event(Kind.ALLOCATED, 3, thread=(1 << 64 - SIZE_BITS) - 1)
    session.write(allocated(1), wrong, threadless, event(Kind.MARK, 4, api=200), event(Kind.FREED, 5, api=17))
    session.write(allocated(6))
    wait_until(lambda: 6 in reading.addresses)
    reading.finish()
    assert reading.addresses == [1, 6]
    assert [line.split(" so far")[0] for line in reading.problems] == [
        "The program's session memory is damaged (4 events"
    ]


def test_a_call_at_the_head_is_made_though_all_events_before_it_are_wrong(session: WrittenSession) -> None:
    reading = Reading(session)
    session.write(*[event(Kind.MARK, 4, api=200)] * 100)
    called = threading.Event()
    reading.pump.call_at_head(called.set)
    assert called.wait(PATIENCE_SECONDS)
    reading.finish()


def test_stacks_that_cannot_be_are_none(session: WrittenSession) -> None:
    memory = session.memory
    words = memory.layout.stacks_words
    memory._stacks[100] = 65_535
    memory._stacks[200] = 2 | 99 << 16
    memory._stacks[300] = 2 | 255 << 24
    memory._stacks[words - 3] = 2
    memory._stacks[words - 4] = 2
    names = Names(memory, lambda pid, tid: None)
    for number in (100, 200, 300, words - 3, words, (1 << 32) - 1):
        assert memory.stack(number) is None
        assert names.stack(number) is None
        assert names.stack_text(number) == "<NA>"
        assert names.addresses(number) == ()
    assert memory.stack(words - 4) is not None
    assert memory.damage.found


def test_types_that_cannot_be_are_unknown(session: WrittenSession) -> None:
    memory = session.memory
    layout = memory.layout
    at = layout.labels_offset

    def write(number: int, length: int) -> None:
        memory._map[at + 8 * number : at + 8 * number + 2] = length.to_bytes(2, "little")

    last = layout.labels_bytes // 8 - 1
    write(1, LABEL_MAX_BYTES + 1)
    write(last, 7)
    write(last - 1, 14)
    for number in (1, last, last + 1, 1 << 31, 0xFFFF_FFFE):
        assert memory.label(number) is None
        assert Names(memory, lambda pid, tid: None).label_text(number) == "<unknown>"
    assert len(memory.label(last - 1) or b"") == 14


def test_threads_and_processes_that_cannot_be_have_no_name_and_no_pid(session: WrittenSession) -> None:
    memory = session.memory
    memory._threads[5]["process"] = MAX_PROCESSES
    memory.header["processes"][1]["reserved"] = (1 << 64) - 1
    memory.header["processes_used"] = (1 << 64) - 1
    asked: list[tuple[int, int]] = []
    names = Names(memory, lambda pid, tid: asked.append((pid, tid)))
    for number in (5, memory.layout.threads_capacity, 1 << 31):
        assert str(names.thread(number)) == "thread 0"
    assert {pid for pid, _ in asked} <= {0}
    assert memory.parent_pid(1) is None
    assert memory.pid(MAX_PROCESSES) == memory.pid(1 << 20) == 0
    assert memory.processes_used() == MAX_PROCESSES


@pytest.mark.parametrize(("record_bytes", "path_bytes"), [(1, 0), (31, 0), (40, 9), (1 << 31, 1), (32, 65_535)])
def test_modules_end_at_a_record_that_cannot_be(session: WrittenSession, record_bytes: int, path_bytes: int) -> None:
    memory = session.memory
    at = memory.layout.modules_offset
    good = np.zeros((), np.dtype([("n", "<u4"), ("p", "<u2"), ("l", "<u2"), ("rest", "V24")]))
    good["n"], good["l"] = 40, 4
    memory._map[at : at + 40] = good.tobytes() + b"/a.b" + bytes(4)
    good["n"], good["l"] = record_bytes, path_bytes
    memory._map[at + 40 : at + 72] = good.tobytes()
    assert [module.path for module in memory.modules()] == ["/a.b"]
    assert memory.damage.found


# ---- everything at once


class Garbage:
    """Overwrites a place of the session memory with random bytes, or with numbers that are at the edge of something."""

    EDGES = (
        0,
        1,
        2,
        7,
        255,
        256,
        65_535,
        1 << 16,
        1 << 20,
        (1 << 31) - 1,
        1 << 31,
        (1 << 32) - 1,
        1 << 47,
        (1 << 64) - 1,
    )

    def __init__(self, session: WrittenSession, seed: int) -> None:
        self.memory = session.memory
        self.random = np.random.default_rng(seed)
        layout = self.memory.layout
        self.tables = (
            (layout.ring_offset, layout.ring_capacity * EVENT_DTYPE.itemsize),
            (layout.stacks_offset, 1 << 14),
            (layout.labels_offset, 1 << 12),
            (layout.threads_offset, 1 << 10),
            (layout.modules_offset, 1 << 12),
            (0, 4096),
        )

    def scribble(self) -> None:
        how = self.random.integers(4)
        if how == 0:
            name = str(self.random.choice((*WRITTEN_BY_THE_PROGRAM, *LAYOUT)))
            limit = (1 << 8 * HEADER_DTYPE[name].itemsize) - 1
            self.memory.header[name] = min(int(self.random.choice(np.array(self.EDGES, np.uint64))), limit)
        elif how == 1:
            number = int(self.random.integers(MAX_PROCESSES))
            self.memory.header["processes"][number] = tuple(self.random.integers(0, 1 << 31, 3))
            self.memory.header["execs"][number % 16] = tuple(self.random.integers(0, 5, 2))
        else:
            offset, size = self.tables[int(self.random.integers(len(self.tables)))]
            length = int(self.random.integers(1, 257))
            at = offset + int(self.random.integers(size - length)) // 8 * 8
            self.memory._map[at : at + length] = self.random.bytes(length)

    def events(self, number: int) -> EventBatch:
        """Events as an agent writes them, but of random content."""
        batch = np.frombuffer(self.random.bytes(32 * number), EVENT_DTYPE).copy()
        batch["kind"] = self.random.integers(1, 9, number)
        batch["api"] = self.random.integers(0, 18, number)
        batch["size_and_thread"] &= np.uint64((1 << 61) - 1)
        batch["stack"] %= 1 << 12
        batch["label"] %= 1 << 10
        return batch


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_is_in_it_the_host_reads_on_and_ends(session: WrittenSession, seed: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    garbage = Garbage(session, seed)
    reading = Reading(session)
    names = Names(session.memory, lambda pid, tid: None)
    good = [allocated(address) for address in range(1, 200)]
    session.write(*good)
    wait_until(lambda: len(reading.addresses) == len(good))
    until = time.monotonic() + 0.7
    with np.errstate(over="ignore"):
        while time.monotonic() < until:
            garbage.scribble()
            with contextlib.suppress(OverflowError):
                _write_without_waiting(session, garbage.events(int(garbage.random.integers(1, 50))))
            number = int(garbage.random.choice(np.array(garbage.EDGES, np.uint64)))
            names.stack(number)
            names.stack_text(int(garbage.random.integers(1, 2000)))
            names.label_text(number)
            names.thread(number)
            names.module_at(number, number)
            names.thread_of_stack(number)
            session.memory.waiting_execs()
            assert all(session.memory.pid(process) >= 0 for process in range(session.memory.processes_used()))
    reading.finish()
    assert [line for line in reading.problems if "damaged" not in line] == []
    assert len(reading.problems) <= 1
    assert reading.addresses[: len(good)] == list(range(1, 200))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < GROWTH_BYTES


def _write_without_waiting(session: WrittenSession, batch: EventBatch) -> None:
    header, ring = session.memory.header, session.memory.ring
    index = int(header["head"])
    slots = (index + np.arange(batch.size, dtype=object)) % len(ring)
    batch["commit"] = (index // len(ring) + 1) & 0xFFFF
    ring[slots.astype(np.int64)] = batch
    header["head"] = (index + batch.size) & 0xFFFF_FFFF_FFFF_FFFF


def test_the_threads_table_is_as_large_as_it_says(session: WrittenSession) -> None:
    assert session.memory._threads.nbytes == session.memory.layout.threads_capacity * THREAD_DTYPE.itemsize


def test_names_of_ever_new_stacks_are_not_all_kept(session: WrittenSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "FRAMES_KEPT", 5000)
    monkeypatch.setattr(names_module, "TEXT_KEPT", 50_000)
    monkeypatch.setattr(symbolizer, "ADDRESSES_KEPT", 300)
    session.memory._stacks[1:20_000] = 200
    names = Names(session.memory, lambda pid, tid: None)
    for number in range(1, 1000):
        assert len(names.stack_text(number).split()) == 200
    assert sum(len(stack.frames) for stack in names._stacks.values()) <= 5000
    assert sum(map(len, names._dump_texts.values())) <= 50_000
