"""The dump file: complete, parseable whatever the types say, written whole or not at all."""

from __future__ import annotations

import csv
import os
import re
import signal
import stat
from pathlib import Path

from tracked import Runner, Tracked

from frida_rtetrack.reports.dump import split_frames

FRAME = re.compile(r".+\(.*\+0x[0-9a-f]+\) \[0x[0-9a-f]+\]$", re.DOTALL)
HOSTILE = {
    1001: "plain",
    1002: "comma, and more",
    1003: '"quoted"',
    1004: "two\nlines",
    1005: "\udcff\udcfe latin \udce9",
    1007: "<unknown>",
    1008: "",
    1009: "on the stack",
    1010: "carriage\rreturn",
    1011: "\u20ac utf-8",
}


def at_the_end(runner: Runner, *options: str, program: tuple[str, ...] = ("waiter",), **more: object) -> Tracked:
    """A run that writes a dump at a SIGRTMIN, once the program has allocated what it does."""
    tracked = runner.spawn(*program, options=options, **more)
    tracked.wait_for("^ready$")
    os.kill(tracked.target, signal.SIGRTMIN)
    tracked.wait_for("written to|cannot|Cannot", "stderr")
    tracked.finish()
    return tracked


def test_hostile_type_names_survive(runner: Runner, engine: str) -> None:
    tracked = runner.spawn("nasty", "types", options=["--engine", engine])
    tracked.wait_for("^ready$")
    os.kill(tracked.target, signal.SIGRTMIN)
    tracked.wait_for("written to", "stderr")
    assert tracked.finish() == 0
    rows = {row.size: row.type for row in tracked.dump}
    assert HOSTILE.items() <= rows.items()
    long_type = rows[1006]
    assert set(long_type.rstrip("\u2026.")) == {"L"}
    assert len(long_type) >= 64


def test_form(runner: Runner, engine: str) -> None:
    tracked = at_the_end(runner, "--engine", engine)
    raw = tracked.dump_path.read_bytes()
    assert raw.startswith(b"Addr,Size,Type,Backtrace\n")
    with open(tracked.dump_path, newline="") as file:
        header, *rows = csv.reader(file, strict=True)
    assert header == ["Addr", "Size", "Type", "Backtrace"]
    assert all(len(row) == 4 and re.fullmatch("0x[0-9a-f]+", row[0]) for row in rows)
    sizes = [int(row[1]) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    (kept,) = [row for row in rows if row[2] == "kept"]
    assert kept[0] == tracked.wait_for("^address (0x.*)$")[1]
    assert kept[1] == "4242"
    frames = split_frames(kept[3])
    assert " ".join(frames) == kept[3]
    assert all(FRAME.match(frame) for frame in frames)
    assert "(keep+0x" in frames[0]
    assert "(wait_inner+0x" in frames[1]
    assert "(main+0x" in frames[2]
    assert stat.S_IMODE(os.stat(tracked.dump_path).st_mode) == 0o600


def test_it_holds_what_the_summary_says_is_live(runner: Runner, engine: str) -> None:
    tracked = at_the_end(runner, "--engine", engine)
    live = tracked.summary["live"]
    assert (len(tracked.dump), sum(row.size for row in tracked.dump)) == (live["blocks"], live["bytes"])


def test_without_backtraces_it_says_so(runner: Runner) -> None:
    rows = at_the_end(runner, "--no-backtrace").dump
    assert rows
    assert {row.backtrace for row in rows} == {"<NA>"}


def test_a_symlink_at_its_path_is_not_followed(runner: Runner, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "dump.csv").symlink_to(victim)
    tracked = at_the_end(runner)
    assert victim.read_text() == "precious"
    assert not tracked.dump_path.is_symlink()
    assert tracked.dump


def test_where_it_cannot_be_written_that_is_said_and_the_tracking_goes_on(runner: Runner, tmp_path: Path) -> None:
    tracked = at_the_end(runner, "--dump-file", str(tmp_path / "missing" / "dump.csv"))
    assert tracked.wait() == 0
    told = [line for line in tracked.stderr.splitlines() if "missing/dump.csv" in line]
    assert len(told) == 1
    assert "--dump-file" in told[0]
    assert tracked.summary["live"]["blocks"] >= 3


def test_nothing_is_left_beside_it(runner: Runner, tmp_path: Path) -> None:
    at_the_end(runner)
    assert [name for name in os.listdir(tmp_path) if "dump" in name] == ["dump.csv"]


def test_rte_malloc_tracks_variables_work_and_options_beat_them(runner: Runner, tmp_path: Path) -> None:
    by_variable, by_option = tmp_path / "variable.csv", tmp_path / "option.csv"
    given = {"RTE_MALLOC_TRACK_DUMP_FILE": str(by_variable), "RTE_MALLOC_TRACK_BACKTRACE": "0"}
    at_the_end(runner, env=given)
    assert by_variable.read_text().count("<NA>") >= 3
    by_variable.unlink()
    at_the_end(runner, "--dump-file", str(by_option), "--backtrace", env=given)
    assert not by_variable.exists()
    assert "(keep+0x" in by_option.read_text()
    assert "<NA>" not in by_option.read_text()
