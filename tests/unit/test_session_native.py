"""The C that writes the session memory against the Python that reads it; built with the sanitizers."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sanitized import built

from frida_rtetrack.stream import events
from frida_rtetrack.stream.events import Api, Kind, Mark, StackEnd
from frida_rtetrack.stream.ring import RingReader, SessionMemory

SOURCE = Path(__file__).resolve().parents[1] / "native" / "session_check.c"


@pytest.fixture(scope="module")
def session_check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(SOURCE, tmp_path_factory.mktemp("session"))


def test_python_and_c_agree_on_every_size_offset_and_constant(session_check: Path) -> None:
    output = subprocess.run([session_check, "layout"], capture_output=True, text=True, check=True).stdout
    layout = {name: int(value) for name, value in re.findall(r"^(\S+(?: \S+\))?) (\d+)$", output, re.MULTILINE)}
    assert layout["SESSION_MAGIC"] == events.SESSION_MAGIC
    assert layout["SESSION_VERSION"] == events.SESSION_VERSION
    assert layout["SESSION_HEADER_BYTES"] == events.HEADER_BYTES
    assert layout["SESSION_MAX_PROCESSES"] == events.MAX_PROCESSES
    assert layout["SESSION_MAX_THREADS"] == events.MAX_THREADS
    assert layout["SESSION_EXECS"] == events.EXECS
    assert layout["EXEC_WAITING"] == events.ExecState.WAITING
    assert layout["EXEC_GO"] == events.ExecState.GO
    assert layout["EVENT_SIZE_BITS"] == events.SIZE_BITS
    assert layout["EVENT_TIME_SHIFT"] == events.TIME_SHIFT
    assert layout["CLOCK_TSC"] == events.CLOCK_TSC
    assert layout["LABEL_MAX_BYTES"] == events.LABEL_MAX_BYTES
    assert layout["STACK_RECORD_WORDS"] == events.STACK_RECORD_WORDS
    assert layout["MODULE_LOADED"] == events.MODULE_LOADED
    assert layout["FINAL_BASELINE"] == events.FINAL_BASELINE
    dtypes = {
        "event": events.EVENT_DTYPE,
        "thread_slot": events.THREAD_DTYPE,
        "module_record": events.MODULE_DTYPE,
        "session_header": events.HEADER_DTYPE,
        "process_entry": events.PROCESS_DTYPE,
        "exec_entry": events.EXEC_DTYPE,
    }
    compared = 0
    for name, value in layout.items():
        if match := re.fullmatch(r"sizeof\(struct (\w+)\)", name):
            assert dtypes[match[1]].itemsize == value, name
        elif match := re.fullmatch(r"(\w+)\.(\w+)", name):
            assert dtypes[match[1]].fields[match[2]][1] == value, name  # type: ignore[index]
        elif match := re.fullmatch(r"(EVENT|API|MARK|STACK)_([A-Z_]+)", name):
            enum = {"EVENT": Kind, "API": Api, "MARK": Mark, "STACK": StackEnd}[match[1]]
            if match[2] not in enum.__members__:
                continue
            assert enum[match[2]] == value, name
        else:
            continue
        compared += 1
    assert compared > 40


@pytest.mark.parametrize(
    ("threads", "count", "laps"),
    [(1, 200_000, 0), (4, 60_000, 0), (16, 12_000, 0), pytest.param(4, 60_000, 0xFFFD, id="laps-begin-anew-at-65536")],
)
def test_every_event_of_every_thread_arrives_once_and_in_its_order(
    session_check: Path, threads: int, count: int, laps: int
) -> None:
    fd = os.memfd_create("session", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    memory = SessionMemory.create(fd, 1)  # a ring of 32,768 events: the writers have to wait
    memory.header["head"] = memory.header["tail"] = laps * len(memory.ring)
    memory.ring["commit"] = laps
    reader = RingReader(memory, lambda process, tid: True)
    writer = subprocess.Popen([session_check, "append", str(fd), str(threads), str(count)], pass_fds=[fd])
    batches = []
    deadline = time.monotonic() + 60
    memory.heartbeat()
    while memory.counter("waits") == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    while time.monotonic() < deadline:
        memory.heartbeat()
        ended = writer.poll() is not None
        batch = reader.read()
        if len(batch):
            batches.append(batch)
        elif ended:
            break
        else:
            time.sleep(0.001)
    assert writer.wait() == 0
    got = np.concatenate(batches)
    got = got[(got["kind"] != Kind.MARK) | (got["api"] != Mark.CLOCK)]  # which comes by itself where this takes long
    assert len(got) == threads * count
    assert memory.counter("lost") == 0
    assert reader.holes == 0
    for thread in range(threads):
        own = got[got["address"] >> np.uint64(38) == thread]
        assert (own["address"] >> np.uint64(6) & np.uint64(0xFFFF_FFFF) == np.arange(count)).all()
        assert len(np.unique(events.threads(own))) == 1
        for event in own[:20]:
            i = int(event["address"]) >> 6 & 0xFFFF_FFFF
            assert memory.stack(int(event["stack"])).addresses == (0x1000 + thread, 0x2000 + i % 7, 0x3000)
            assert memory.label(int(event["label"])) == b"label-%d" % (i % 5)
    assert len(np.unique(got["label"])) <= 5 * threads  # once each, but for races at the first use
    assert len(np.unique(got["stack"])) == 7 * threads
    assert memory.counter("waits") > 0
    assert [module.path for module in memory.modules()] == ["/some/module"]
    os.close(fd)


def test_a_ring_that_nobody_reads_drops_and_counts_and_lets_the_program_go_on(session_check: Path) -> None:
    fd = os.memfd_create("session", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    memory = SessionMemory.create(fd, 1)
    memory.header["heartbeat_ns"] = 1  # the host was last alive a long time ago
    done = subprocess.run(
        [session_check, "append", str(fd), "1", "40000"], pass_fds=[fd], timeout=60, capture_output=True
    )
    assert done.returncode != 0  # the test program aborts at its first dropped event
    assert memory.counter("lost") >= 1
    os.close(fd)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from(["write", "hole", "read"]), st.integers(1, 3000)), max_size=30))
def test_reader_takes_what_is_complete_and_passes_over_dead_holes_only(steps: list[tuple[str, int]]) -> None:
    fd = os.memfd_create("session", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    memory = SessionMemory.create(fd, 1)
    reader = RingReader(memory, lambda process, tid: False)
    capacity, head, written, taken, holes = len(memory.ring), 0, [], [], 0
    for what, number in steps:
        if what == "read":
            while len(batch := reader.read(number)):
                taken += batch["address"].tolist()
            continue
        for _ in range(min(number if what == "write" else 1, capacity - (head - reader.consumed))):
            slot = memory.ring[head % capacity]
            if what == "write":
                slot["address"] = head
                slot["commit"] = head // capacity + 1
                written.append(head)
            else:
                holes += 1
            head += 1
            memory.header["head"] = head
    deadline = time.monotonic() + 20
    while reader.pending() and time.monotonic() < deadline:
        reader._stuck_since = -1.0 if reader._stuck_since is not None else None  # its patience is over
        taken += reader.read()["address"].tolist()
    assert taken == written
    assert reader.holes == holes
    os.close(fd)


def test_a_hole_of_a_living_thread_is_waited_for() -> None:
    fd = os.memfd_create("session", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    memory = SessionMemory.create(fd, 1)
    reader = RingReader(memory, lambda process, tid: True)
    memory._threads[1]["tid"], memory._threads[1]["appending"] = 99, 1
    memory.header["threads_used"] = 2
    memory.header["head"] = 1

    def commit() -> None:
        time.sleep(0.3)
        memory.ring[0]["address"] = 7
        memory.ring[0]["commit"] = 1

    thread = threading.Thread(target=commit)
    thread.start()
    deadline = time.monotonic() + 10
    while not len(batch := reader.read()) and time.monotonic() < deadline:
        time.sleep(0.01)
    thread.join()
    assert batch["address"].tolist() == [7]
    assert reader.holes == 0
    os.close(fd)
