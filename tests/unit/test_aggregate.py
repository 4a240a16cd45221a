"""A recording that keeps a series in place of events: what it tells is what the session told, and it stays small."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import rows as made_up_rows
from rig import Rig
from test_leaks import finding
from test_recording import ENDING, HEAP, addresses, recorded, replayed, steps, tell
from test_recording import rows as sorted_rows
from written import allocated, busy, freed, mark, wait_until

from frida_rtetrack.commands.cli import cli
from frida_rtetrack.errors import DamagedRecording, NotRecorded, RtetrackError
from frida_rtetrack.recording.aggregate import Aggregate, Sample
from frida_rtetrack.recording.blocks import pack_rows, unpack_rows
from frida_rtetrack.recording.file import RecordingFile, create
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.recorder import Recorder
from frida_rtetrack.recording.replay import Replay
from frida_rtetrack.recording.series import history
from frida_rtetrack.reports.freespace import FreeSpace, HeapSpace
from frida_rtetrack.reports.usage import UsageCounter
from frida_rtetrack.stream.events import Mark
from frida_rtetrack.tracking.heap import HeapOwner
from frida_rtetrack.tracking.map import MapState, Peak, Totals

WEEK_SECONDS = 7 * 24 * 3600
NAMES = ("allocations", "allocated_bytes", "freed_bytes", "frees", "resizes", "failed", "baseline_blocks")


def aggregated_too(rig: Rig, path: Path) -> Recorder:
    """A second recording of the session, without events."""
    session = rig.session
    made = Recorder(
        path,
        rig.written.memory,
        session.names,
        rig.heap,
        cast(Any, rig.processes),
        on_problem=rig.told.problem,
        aggregate_seconds=60,
    )
    kept = rig.map.on_amended
    made.begin(dict, started=rig.start)
    rig.map.on_amended = kept
    session.pump.subscribe(made)
    return made


@settings(max_examples=30, deadline=None)
@given(steps, st.lists(addresses, unique=True, max_size=5))
def test_the_end_is_told_as_with_every_event(story: list[Any], heap: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole, short = Path(folder) / "whole", Path(folder) / "short"
        rig = Rig(Path(folder), whole)
        rig.answer(*map(busy, heap))
        other = aggregated_too(rig, short)
        tell(rig, story)
        kept = rig.map.on_amended
        found, live, totals = recorded(rig)
        rig.map.on_amended = kept
        other.finish(ending=ENDING, verified=rig.heap.view.verified)
        with Recording(short) as recording, Recording(whole) as complete:
            replay = Replay(recording).run()
            again, live_again, totals_again = replayed(replay)
            assert recording.damage is None
            assert live_again == live
            assert (again["peak"], again["at_cleanup"]) == (found["peak"], found["at_cleanup"])
            assert again["bad_frees"] == found["bad_frees"]
            assert [getattr(totals_again, name) for name in NAMES] == [getattr(totals, name) for name in NAMES]
            counter, all_events = UsageCounter(), Replay(complete).run()
            for _, events, times in complete.events():
                counter.add(events, times)
            assert replay.kept is not None
            assert UsageCounter.of(replay.kept.usage).usage(replay.names) == counter.usage(all_events.names)
            assert [replay.often.of(n) for n in range(3)] == [all_events.often.of(n) for n in range(3)]
            last = history(recording, replay.start)
            held = last.at(len(last.seconds) - 1)
            assert sum(each.size_bytes for each in held.values()) == sum(row[1] for row in live)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    rig = Rig(folder, folder / "run.rtrec", record_aggregate_seconds=60.0)
    rig.processes.targets[1].is_tracked = False
    rig.write(allocated(HEAP, 300), allocated(HEAP + 4096, 50), freed(HEAP + 4096), freed(HEAP + 4096))
    rig.write(mark(Mark.EAL_CLEANUP_STARTED), freed(HEAP), mark(Mark.EAL_CLEANUP_ENDED), allocated(HEAP + 128, 7))
    assert rig.session.recorder is not None
    live = rig.map.live()
    rig.session.recorder.note(finding(live, live[:0], at_ns=1))
    rig.session.recorder.note(FreeSpace(1, (HeapSpace(0, 9, 1, 5, 1, 0, ((256, 1, 5),)),), True, 3))
    recorded(rig)
    return folder / "run.rtrec"


def run(*words: object) -> Any:
    return CliRunner().invoke(cli, list(map(str, words)))


def test_every_report_on_its_end_works_and_what_needs_events_says_so(short: Path) -> None:
    for command in (
        ("summary",),
        ("table",),
        ("table", "--at-cleanup"),
        ("tree",),
        ("leaks",),
        ("stats",),
        ("diff", short),
    ):
        assert run(*command, short).exit_code == 0, command
    assert json.loads(run("table", "--json", short).stdout)["bytes"] == 7
    assert json.loads(run("table", "--json", "--at-cleanup", short).stdout)["bytes"] == 300
    assert json.loads(run("stats", "--json", short).stdout)["size_bytes"] == 357
    assert len(json.loads(run("summary", "--json", short).stdout)["bad_frees"]) == 1
    assert run("flamegraph", "-o", short.with_suffix(".html"), short).exit_code == 0
    for command in (
        ("table", "--peak"),
        ("tree", "--at", "1"),
        ("table", "--temporary", "1"),
        ("diff",),
        ("stats", "--socket", "0"),
    ):
        result = run(*command, short)
        assert isinstance(result.exception, NotRecorded), command
        assert "--aggregate" in str(result.exception)


def test_what_was_written_last_is_read_where_nothing_ended_it(tmp_path: Path) -> None:
    path = tmp_path / "run.rtrec"
    rig = Rig(tmp_path, path, record_aggregate_seconds=60.0)
    recorder = rig.session.recorder
    assert recorder is not None
    assert recorder._aggregate is not None
    rig.write(allocated(HEAP, 300))
    wait_until(lambda: "until_ns" in recorder._told)  # the first one, of an empty heap
    written_ns = recorder._told["until_ns"]
    recorder._aggregate._next = 0.0
    wait_until(lambda: recorder._told["until_ns"] > written_ns)
    recorder._queue.put(None)
    recorder._thread.join(20)
    with Recording(path) as recording:
        replay = Replay(recording).run()
        assert (replay.heap.map.live_bytes, recording.about.ended) == (300, False)
    recorded(rig)


def test_a_week_of_a_busy_program_is_under_100_mb(tmp_path: Path) -> None:
    """1,000 call sites in 4 threads, all of which hold something else each minute, 100,000 live blocks at the end."""
    path, samples, random = tmp_path / "week", 60, np.random.default_rng(1)
    create(path, force=False)
    file, aggregate = RecordingFile(path), Aggregate(60.0)
    empty = path.stat().st_size
    live = made_up_rows(*({} for _ in range(1))).repeat(100_000)
    live["address"] = HEAP + 128 * np.arange(100_000)
    for number in range(samples):
        live["stack"] = random.integers(1, 1001, live.size)
        live["thread"] = live["stack"] % 4
        live["size_bytes"] = random.integers(1, 5000, live.size)
        live["allocated_at_ns"] = random.integers(0, WEEK_SECONDS * 10**9, live.size)
        live["sequence"] = random.integers(0, 1 << 44, live.size)
        sample = Sample(number, MapState(live, 0, Totals(), Peak(), True, {}), None, (), HeapOwner.TARGET, True)
        new, changed = aggregate.changes(sample)
        assert changed is not None
        assert changed[0] == 1000
        file.sites(new)
        file.series(number, changed)
    file.commit()
    series_bytes = path.stat().st_size - empty
    file.beginning(sample.state, aggregate.live(sample))
    file.commit()
    file.close()
    rest = path.stat().st_size - series_bytes
    week = series_bytes / samples * WEEK_SECONDS / 60 + rest
    print(f"{series_bytes / samples / 1000:.1f} bytes a call site and minute; {week / 1e6:.0f} MB a week")
    assert week < 100e6


@given(st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1), st.booleans()), max_size=9))
def test_blocks_come_back_from_their_columns(blocks: list[tuple[int, int, bool]]) -> None:
    live = made_up_rows(*({"address": a, "stack": s, "baseline": b, "socket": -1} for a, s, b in blocks))
    assert sorted_rows(unpack_rows(pack_rows(live))) == sorted_rows(live)


@given(st.binary(max_size=200), st.integers(0, 10_000), st.integers(0, 7))
def test_blocks_that_are_damaged_are_damaged(noise: bytes, place: int, bit: int) -> None:
    live = made_up_rows({}, {"size_bytes": 9}, {"stack": 77})
    wrong = bytearray(pack_rows(live))
    wrong[place % len(wrong)] ^= 1 << bit
    for raw in (noise, bytes(wrong)):
        try:
            unpack_rows(raw)
        except DamagedRecording:
            pass


@pytest.mark.parametrize("command", [("leaks",), ("stats", "--json"), ("table", "--at-cleanup")])
def test_what_is_damaged_is_said_in_a_sentence(short: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    whole, path = short.read_bytes(), tmp_path / "wrong"
    random = np.random.default_rng(len(command[0]))
    for _ in range(60):
        wrong = bytearray(whole)
        for place in random.integers(0, 8 * len(whole), 12).tolist():
            wrong[place // 8] ^= 1 << place % 8
        path.write_bytes(wrong)
        result = run(*command, path)
        assert result.exception is None or isinstance(result.exception, RtetrackError), result.exception
        try:
            with Recording(path) as recording:
                history(recording, Replay(recording).start)
        except RtetrackError:
            pass


def test_growth_is_seen_in_the_series(tmp_path: Path) -> None:
    path = tmp_path / "grows"
    create(path, force=False)
    file, aggregate = RecordingFile(path), Aggregate(60.0)
    for number in range(60):
        live = made_up_rows(*({"stack": 5} for _ in range(number + 3)), *({"stack": 6} for _ in range(7)))
        sample = Sample(number * 10**9, MapState(live, 0, Totals(), Peak(), True, {}), None, (), HeapOwner.TARGET, True)
        new, changed = aggregate.changes(sample)
        file.sites(new)
        file.series(sample.at_ns, changed)
    file.about(
        started={"wall": "2026-03-01T12:00:00Z", "monotonic_ns": 0},
        aggregate_seconds=60.0,
        until_ns=59 * 10**9,
        ended=True,
    )
    file.beginning(sample.state, aggregate.live(sample))
    file.aggregate(*aggregate.kept(sample))
    file.commit()
    file.close()
    (growing,) = json.loads(run("leaks", "--json", path).stdout)["growing"]
    assert (growing["blocks"], growing["bytes"]) == (62, 62 * 64)
