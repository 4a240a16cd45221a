"""A recording gives the answers that the session gave, to the byte; and whatever happens to its file, what stands is read."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rig import Rig
from written import PATIENCE_SECONDS, allocated, busy, event, freed, mark, wait_until

from frida_rtetrack.errors import BadUsage, DamagedRecording, NoRecording, RtetrackError
from frida_rtetrack.recording import file, recorder
from frida_rtetrack.recording.columns import COLUMNS, columns_of, events_of, pack, unpack
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.recorder import Recorder
from frida_rtetrack.recording.replay import Replay
from frida_rtetrack.stream.events import EVENT_DTYPE, SIZE_BITS, Api, Kind, Mark
from frida_rtetrack.target.target import Ending
from frida_rtetrack.tracking.heap import HeapDifference
from frida_rtetrack.tracking.map import Totals

HEAP = 0x1_4000_0000
ENDING = Ending(0, None, "exited")


# ---- columns


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=50))
def test_a_column_gives_back_what_it_was_given(values: list[int]) -> None:
    assert unpack(pack(np.array(values, np.uint64)), len(values)).tolist() == values


def some_events(count: int, seed: int = 1) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    events = np.zeros(count, EVENT_DTYPE)
    events["kind"], events["api"] = random.integers(1, 4, count), random.integers(0, 10, count)
    events["socket"], events["label"] = random.integers(-1, 3, count), random.integers(0, 40, count)
    events["address"] = HEAP + random.integers(0, 1 << 20, count) * 64
    events["size_and_thread"] = random.integers(0, 1 << 44, count).astype(np.uint64) | np.uint64(3 << SIZE_BITS)
    events["stack"] = random.integers(0, 1 << 32, count)
    return events, np.cumsum(random.integers(0, 3000, count)) + 77_000_000_000_000


@given(st.integers(1, 300), st.integers(0, 99))
def test_events_come_back_from_their_columns(count: int, seed: int) -> None:
    events, times = some_events(count, seed)
    again, times_again = events_of(columns_of(events, times, int(times[0])), count, int(times[0]))
    assert (again == events).all()
    assert (times_again == times).all()


@given(st.sampled_from(COLUMNS), st.integers(0, 10_000), st.integers(0, 7))
def test_a_column_with_a_wrong_bit_is_damaged_or_as_it_was(name: str, place: int, bit: int) -> None:
    events, times = some_events(200)
    columns = columns_of(events, times, int(times[0]))
    wrong = bytearray(columns[name])
    wrong[place % len(wrong)] ^= 1 << bit
    try:
        again, _ = events_of({**columns, name: bytes(wrong)}, 200, int(times[0]))
    except DamagedRecording:
        return
    assert (again == events).all()


# ---- replay equals live


def recorded(rig: Rig, recorder: Recorder | None = None) -> tuple[dict[str, Any], Any, Totals]:
    """Ends the session; what it said: its summary, what was live, the totals."""
    rig.end()
    recorder = recorder or rig.session.recorder
    assert recorder is not None
    found = {
        "bad_frees": list(rig.heap.bad_frees.reports),
        "peak": rig.map.peak,
        "complete": rig.map.complete,
        "events": rig.map.events,
        "init_ranges": rig.heap.eal.init_ranges,
        "at_cleanup": None if rig.heap.eal.at_cleanup is None else rows(rig.heap.eal.at_cleanup),
        "owner": rig.heap.eal.owner,
        "verified": rig.heap.view.verified,
    }
    live, totals = rows(rig.map.live()), rig.map.totals
    recorder.finish(ending=ENDING, verified=rig.heap.view.verified)
    rig.written.close()
    return found, live, totals


def rows(live: Any) -> list[Any]:
    return sorted(live.tolist())


def replayed(replay: Replay) -> tuple[dict[str, Any], Any, Totals]:
    heap = replay.heap
    found = {
        "bad_frees": heap.bad_frees.reports,
        "peak": heap.map.peak,
        "complete": heap.map.complete,
        "events": heap.map.events,
        "init_ranges": heap.eal.init_ranges,
        "at_cleanup": None if heap.eal.at_cleanup is None else rows(heap.eal.at_cleanup),
        "owner": heap.eal.owner,
        "verified": heap.view.verified,
    }
    return found, rows(heap.map.live()), heap.map.totals


addresses = st.integers(0, 7).map(lambda number: HEAP + 128 * number)
threads = st.integers(1, 3)
steps = st.lists(
    st.one_of(
        st.builds(lambda a, t, n: allocated(a, n, thread=t), addresses, threads, st.integers(1, 4000)),
        st.builds(lambda a, t: freed(a, thread=t), addresses, threads),
        st.builds(lambda a, t: event(Kind.RESIZE_STARTED, a, 100, api=Api.REALLOC, thread=t), addresses, threads),
        st.builds(lambda a, t: event(Kind.RESIZE_ENDED, a, 100, api=Api.REALLOC, thread=t), addresses, threads),
        st.builds(
            lambda kind, t: mark(kind, thread=t),
            st.sampled_from(
                [Mark.EAL_INIT_STARTED, Mark.EAL_INIT_ENDED, Mark.EAL_CLEANUP_STARTED, Mark.EAL_CLEANUP_ENDED]
            ),
            threads,
        ),
        st.sampled_from(["lost", "baseline", "verify", "wait", "one ends"]),
    ),
    max_size=40,
)


def tell(rig: Rig, story: list[Any]) -> None:
    """Has it happen."""
    for step in story:
        if not isinstance(step, str):
            rig.written.write(step)
            continue
        rig.sync()
        if step == "lost":
            with rig.session.pump.lock:
                rig.map.mark_incomplete()
        elif step == "one ends":
            rig.processes.targets[1].is_tracked = False
        elif step != "wait":
            try:
                getattr(rig.heap.view, step)()
            except RtetrackError:
                pass
    rig.sync()


@settings(max_examples=60, deadline=None)
@given(steps, st.lists(addresses, unique=True, max_size=5))
def test_a_replay_gives_the_sessions_own_answers(story: list[Any], heap: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        rig = Rig(Path(folder), path)
        rig.answer(*map(busy, heap))
        tell(rig, story)
        live = recorded(rig)
        with Recording(path) as recording:
            again = replayed(Replay(recording).run())
            assert recording.damage is None
            assert recording.about.ended
    assert again == live


def test_a_replay_stops_at_a_moment_and_at_the_peak(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    rig = Rig(tmp_path, path)
    rig.write(allocated(HEAP, 100), allocated(HEAP + 128, 50), freed(HEAP), allocated(HEAP + 256, 10))
    recorded(rig)
    with Recording(path) as recording:
        whole = Replay(recording).run()
        peak = whole.heap.map.peak
        assert (whole.heap.map.live_bytes, peak.bytes) == (60, 150)
        at_peak = Replay(recording).run(until_sequence=peak.sequence)
        assert (at_peak.heap.map.live_bytes, at_peak.heap.map.events) == (150, 2)
        assert Replay(recording).run(until_ns=rig.start.monotonic_ns).heap.map.events == 0
        seen: list[int] = []
        replay = Replay(recording)
        replay.run(
            stops_ns=[rig.start.monotonic_ns, whole.now_ns, whole.now_ns + 1],
            on_stop=lambda: seen.append(replay.heap.map.live_bytes),
        )
        assert seen == [0, 60, 60]


def test_what_the_process_that_left_last_decided_is_kept_though_it_came_late(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    rig = Rig(tmp_path, path)
    assert rig.session.recorder is not None
    rig.write(allocated(HEAP, 300))
    rig.session.recorder._seal()
    wait_until(lambda: rig.session.recorder is not None and "last_leaves" in rig.session.recorder._told)
    rig.processes.targets[1].is_tracked = False
    rig.write(mark(Mark.EAL_CLEANUP_STARTED), mark(Mark.EAL_CLEANUP_ENDED))
    found, _, _ = recorded(rig)
    assert found["at_cleanup"]
    with Recording(path) as recording:
        assert replayed(Replay(recording).run())[0] == found


@settings(max_examples=60, deadline=None)
@given(steps, steps, st.lists(addresses, unique=True, max_size=5))
def test_a_recording_that_began_later_ends_with_the_same_answers(before: Any, after: Any, heap: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        rig = Rig(Path(folder))
        rig.answer(*map(busy, heap))
        tell(rig, before)
        at_cleanup_before = rig.heap.eal.at_cleanup is not None
        begun_events = rig.map.events
        recording = rig.session.make_recorder(path, False)
        with rig.heap.view.undisturbed(), rig.session.pump.lock:
            recording.begin(dict, started=rig.start)
            rig.session.pump.subscribe(recording)
        tell(rig, after)
        found, live, totals = recorded(rig, recording)
        with Recording(path) as opened:
            again, live_again, totals_again = replayed(Replay(opened).run())
            assert opened.damage is None
        assert live_again == live
        assert again["events"] == found["events"] >= begun_events
        assert again["peak"] == found["peak"]
        if not at_cleanup_before:
            assert again["at_cleanup"] == found["at_cleanup"]
        same = ("allocations", "allocated_bytes", "freed_bytes", "frees", "resizes", "failed", "baseline_blocks")
        assert [getattr(totals_again, name) for name in same] == [getattr(totals, name) for name in same]


# ---- the file


def test_a_recording_is_its_owners_and_overwrites_nothing_unasked(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    rig = Rig(tmp_path, path)
    recorded(rig)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for refuse in (file.check, file.create):
        with pytest.raises(BadUsage, match="There is a file"):
            refuse(path, force=False)
    file.check(path, force=True)
    file.create(path, force=True)
    assert path.stat().st_size == 0
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(BadUsage):
        file.create(link, force=True)
    for nowhere in (tmp_path, tmp_path / "none" / "recording"):
        with pytest.raises(BadUsage):
            file.check(nowhere, force=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A recording of 40,000 events in some chunks."""
    folder = tmp_path_factory.mktemp("whole")
    path = folder / "recording"
    rig = Rig(folder, path)
    for part in range(8):
        base = HEAP + part * 1_000_000
        rig.written.write_batch(np.array([allocated(base + 64 * n, 8) for n in range(2500)], EVENT_DTYPE))
        rig.sync()
        assert rig.session.recorder is not None
        rig.session.recorder._seal()
    recorded(rig)
    return path.read_bytes()


def read_as_far_as_it_goes(path: Path) -> tuple[int, str | None]:
    """How many events can be replayed, and what is said; nothing but our own errors comes."""
    try:
        with Recording(path) as recording:
            replay = Replay(recording).run()
            replay.summary().as_json()
            return replay.heap.map.events, recording.damage
    except RtetrackError as error:
        return 0, str(error)


def test_a_file_cut_anywhere_is_read_as_far_as_it_goes(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(whole)
    assert read_as_far_as_it_goes(path) == (20_000, None)
    got = []
    for size in range(0, len(whole), 4096):
        path.write_bytes(whole[:size])
        events, said = read_as_far_as_it_goes(path)
        assert said is not None or events == 20_000 or size >= len(whole) - 8192
        got.append(events)
    assert max(got) > 10_000


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_flipped_bits_never_lead_to_an_error_of_python(whole: bytes, data: st.DataObject) -> None:
    wrong = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, 8 * len(whole) - 1), min_size=1, max_size=20)):
        wrong[place // 8] ^= 1 << place % 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wrong"
        path.write_bytes(wrong)
        read_as_far_as_it_goes(path)


def test_what_is_no_recording_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(NoRecording, match="No such file"):
        Recording(path)
    for content, said in ((b"", "is empty"), (b"Addr,Size,Type,Backtrace\n" * 9, "is no recording")):
        path.write_bytes(content)
        with pytest.raises(NoRecording, match=said):
            Recording(path)
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE about (key, value)")
    database.commit()
    with pytest.raises(NoRecording, match="SQLite database, and no recording"):
        Recording(path)
    database.execute(f"PRAGMA application_id = {file.APPLICATION_ID}")
    with pytest.raises(DamagedRecording):
        Recording(path)
    database.execute("PRAGMA user_version = 99")
    with pytest.raises(NoRecording, match="newer rtetrack-frida"):
        Recording(path)
    with pytest.raises(NoRecording, match="cannot be read"):
        Recording(tmp_path)


def test_a_recording_with_something_to_run_in_it_is_none(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile"
    path.write_bytes(whole)
    database = sqlite3.connect(path)
    database.execute("DROP TABLE labels")
    database.execute(
        "CREATE VIEW labels AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i, i FROM n"
    )
    database.commit()
    database.close()
    with pytest.raises(NoRecording, match="view or a trigger"):
        Recording(path)


def test_what_was_committed_is_there_when_the_writer_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    rig = Rig(tmp_path, path)
    rig.write(allocated(HEAP), allocated(HEAP + 64), freed(HEAP), freed(HEAP))
    assert rig.session.recorder is not None
    rig.session.recorder._seal()
    rig.session.recorder._queue.put(None)
    rig.session.recorder._thread.join(PATIENCE_SECONDS)
    with Recording(path) as recording:  # as it would be after a power cut: nothing ended it
        replay = Replay(recording).run()
        assert (replay.heap.map.events, len(replay.heap.bad_frees.reports), recording.about.ended) == (4, 1, False)
    recorded(rig)


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recording"
    rig = Rig(tmp_path, path)
    rig.write(allocated(HEAP))
    recording = rig.session.recorder
    assert recording is not None
    recording._seal()
    pages = os.stat(path).st_size // 8192
    recording._file._database.execute(f"PRAGMA max_page_count = {pages}")  # what SQLite then says is what ENOSPC gives
    events, _ = some_events(50_000)
    events["kind"] = Kind.ALLOCATED
    events["size_and_thread"] &= np.uint64((1 << SIZE_BITS) - 1)
    events["size_and_thread"] |= np.uint64(1 << SIZE_BITS)
    rig.written.write_batch(events[:20_000])
    rig.sync()
    recording._seal()
    recording._thread.join(PATIENCE_SECONDS)
    assert recording.failed is not None
    rig.sync()
    assert [text for text in rig.told.problems if "ended early: database or disk is full" in text]
    rig.write(freed(HEAP))
    assert rig.map.events == 20_002
    recorded(rig)
    events_read, said = read_as_far_as_it_goes(path)
    assert (events_read, said) == (1, None)


def test_the_pump_waits_for_a_writer_that_is_slow_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "CHUNK_EVENTS", 16)
    path = tmp_path / "recording"
    rig = Rig(tmp_path, path)
    rig.written.write_batch(np.array([allocated(HEAP + 64 * n) for n in range(5000)], EVENT_DTYPE))
    rig.sync()
    assert recorded(rig)[1] == read_rows(path)


def read_rows(path: Path) -> list[Any]:
    with Recording(path) as recording:
        return rows(Replay(recording).run().live())


def test_a_verdict_is_kept_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    rig = Rig(tmp_path, path)
    rig.write(mark(Mark.EAL_INIT_STARTED), mark(Mark.EAL_INIT_ENDED), allocated(HEAP))
    rig.answer(busy(HEAP), busy(HEAP + 640))
    assert rig.heap.view.verify(at_end=True)
    found, _, _ = recorded(rig)
    with Recording(path) as recording:
        verified = Replay(recording).run().heap.view.verified
    assert isinstance(verified, HeapDifference)
    assert verified == found["verified"]
