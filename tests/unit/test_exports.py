"""What other tools open: each format adds up to what is live, and the tool that it is for can read it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from made_up import SECOND, START, MadeUpNames, frame, moment, moments, rows, stack

from frida_rtetrack.reporters.exports import blocks, folded, parquet, pprof, speedscope
from frida_rtetrack.reporters.outfile import OutputError, whole
from frida_rtetrack.reports.moment import Moment
from frida_rtetrack.symbols.names import Stack

ROOT = Path(__file__).resolve().parents[2]
NAMES = MadeUpNames(
    {
        1: stack("queue_setup", "main"),
        2: Stack((frame("inner", inlined=True, offset=0x500, file="/src/app.c", line=7), frame("outer", offset=0x500)), None),
        3: Stack((frame("flow;create", "libflow.so"), frame(None, offset=0xABC), frame("main")), None),
    },
    {1: "rx queue", 2: "flow"},
)  # fmt: skip
LIVE = rows(
    {"size_bytes": 64, "stack": 1, "label": 1},
    {"size_bytes": 36, "stack": 1, "label": 1, "thread": 2},
    {"size_bytes": 4096, "stack": 2, "label": 2, "socket": 1},
    {"size_bytes": 500, "stack": 3, "label": 2, "allocated_at_ns": START.monotonic_ns + SECOND},
    {"size_bytes": 128, "baseline": True},
)


def written(write: Any, now: Moment, **options: Any) -> bytes:
    file = io.BytesIO()
    write(now, file, **options)
    return file.getvalue()


def live_bytes(now: Moment) -> int:
    return sum(now.rows["size_bytes"].tolist())


# ---- folded


@given(moments())
def test_folded_stacks_add_up(now: Moment) -> None:
    for by, expected in (("bytes", live_bytes(now)), ("blocks", now.rows.size)):
        lines = written(folded.write, now, by=by).decode().split("\n")
        assert lines.pop() == ""
        assert sum(int(line.rpartition(" ")[2]) for line in lines) == expected
        assert len({line.rpartition(" ")[0] for line in lines}) == len(lines)


def test_folded_stacks_are_lines_as_flamegraph_pl_wants_them() -> None:
    lines = written(folded.write, moment(LIVE, NAMES)).decode().splitlines()
    assert lines == ["outer;inner 4096", "main;app+0xabc;flow:create 500", "(no stack) 128", "main;queue_setup 100"]


# ---- speedscope


@given(moments())
def test_a_speedscope_document_is_as_its_schema_says_and_adds_up(now: Moment) -> None:
    document = json.loads(written(speedscope.write, now))
    assert set(document) == {"$schema", "exporter", "name", "activeProfileIndex", "shared", "profiles"}
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = document["shared"]["frames"]
    for each in frames:
        assert isinstance(each["name"], str) and set(each) <= {"name", "file", "line"}
    assert [each["unit"] for each in document["profiles"]] == ["bytes", "none"]
    for each, expected in zip(document["profiles"], (live_bytes(now), now.rows.size), strict=True):
        assert each["type"] == "sampled" and isinstance(each["name"], str)
        assert len(each["samples"]) == len(each["weights"])
        assert sum(each["weights"]) == each["endValue"] - each["startValue"] == expected
        assert all(sample and set(sample) <= set(range(len(frames))) for sample in each["samples"])


def test_speedscope_has_stacks_from_the_outermost_frame_on() -> None:
    document = json.loads(written(speedscope.write, moment(LIVE, NAMES)))
    names = [each["name"] for each in document["shared"]["frames"]]
    stacks = [[names[number] for number in sample] for sample in document["profiles"][0]["samples"]]
    assert ["main", "app+0xabc", "flow;create"] in stacks and ["outer", "inner"] in stacks
    assert {"name": "inner", "file": "/src/app.c", "line": 7} in document["shared"]["frames"]


# ---- pprof


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protocol buffer message; of the wire types only those that pprof has."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
        else:
            assert tag & 7 == 2
            length = varint()
            yield tag >> 3, message[place : place + length]
            place += length
    assert place == len(message)


def numbers(packed: bytes) -> list[int]:
    return [value for _, value in fields(b"".join(b"\x08" + each for each in _varints(packed)))]  # type: ignore[misc]


def _varints(packed: bytes) -> Iterator[bytes]:
    start = 0
    for end, byte in enumerate(packed, 1):
        if byte < 0x80:
            yield packed[start:end]
            start = end


def of(message: bytes, number: int) -> list[Any]:
    return [value for field, value in fields(message) if field == number]


@given(moments())
def test_a_pprof_profile_adds_up_and_each_number_in_it_stands_for_something(now: Moment) -> None:
    message = gzip.decompress(written(pprof.write, now))
    strings = [text.decode() for text in of(message, 6)]
    assert strings[0] == "" and len(set(strings)) == len(strings)
    values = [numbers(of(sample, 2)[0]) for sample in of(message, 2)]
    assert sum(value[0] for value in values) == now.rows.size
    assert sum(value[1] for value in values) == live_bytes(now)
    locations = {of(each, 1)[0]: each for each in of(message, 4)}
    functions = {of(each, 1)[0] for each in of(message, 5)}
    mappings = {of(each, 1)[0] for each in of(message, 3)} | {0}
    for sample in of(message, 2):
        assert set(numbers(of(sample, 1)[0])) <= set(locations)
        assert all(of(label, 1)[0] < len(strings) for label in of(sample, 3))
    for location in locations.values():
        assert of(location, 2)[0] in mappings
        assert {of(line, 1)[0] for line in of(location, 4)} <= functions


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed (Debian: golang-go)")
def test_go_tool_pprof_opens_it_and_shows_the_same_sums(tmp_path: Path) -> None:
    path = tmp_path / "live.pb.gz"
    largest_in_a_library = {3: NAMES.stacks[2], 2: NAMES.stacks[3], 1: NAMES.stacks[1]}
    path.write_bytes(written(pprof.write, moment(LIVE, replace(NAMES, stacks=largest_in_a_library))))
    environment = os.environ | {"HOME": str(tmp_path), "PPROF_TMPDIR": str(tmp_path)}

    def ask(*options: str) -> str:
        command = ["go", "tool", "pprof", "-symbolize=none", *options, str(path)]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert run.returncode == 0, run.stderr
        return run.stdout

    top = ask("-top", "-unit=bytes")
    assert top.startswith("File: app\n")
    assert "Type: inuse_space" in top and "4824B total" in top and "flow;create" in top and "(no stack)" in top
    assert "5 total" in ask("-top", "-sample_index=inuse_objects")
    tags = ask("-tags", "-unit=bytes")
    assert "rx queue" in tags and "thread-2" in tags
    inlined = ask("-peek=inner", "-unit=bytes")
    assert "outer" in inlined and "(inline)" in inlined


# ---- CSV


@given(moments())
def test_the_csv_has_a_line_for_each_block_and_adds_up(now: Moment) -> None:
    text = written(blocks.write, now).decode()
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    assert tuple(header) == blocks.COLUMNS
    assert len(lines) == now.rows.size and {len(line) for line in lines} <= {len(header)}
    assert sum(int(line[1]) for line in lines) == live_bytes(now)
    assert {int(line[0], 16) for line in lines} == set(now.rows["address"].tolist())
    assert "\x1b" not in text


def test_the_csv_says_who_allocated_a_block_and_when() -> None:
    lines = list(csv.DictReader(io.StringIO(written(blocks.write, moment(LIVE, NAMES)).decode())))
    assert [line["bytes"] for line in lines] == ["4096", "500", "128", "64", "36"]
    assert lines[1] == {
        "address": "0x4000", "bytes": "500", "type": "flow", "socket": "-1", "pid": "4000", "tid": "4001", "thread": "thread-1",
        "function": "rte_malloc", "allocated_seconds": "1.0", "baseline": "no", "stack": "flow;create < app+0xabc < main",
    }  # fmt: skip
    assert (lines[2]["baseline"], lines[2]["thread"], lines[2]["stack"]) == ("yes", "", "")


# ---- Parquet


@given(moments())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_the_parquet_file_adds_up(tmp_path: Path, now: Moment) -> None:
    table = pyarrow.parquet.read_table(parquet.write(now, tmp_path, force=True), partitioning=None)
    assert table.num_rows == now.rows.size
    assert sum(table["bytes"].to_pylist()) == live_bytes(now)
    assert table["baseline"].to_pylist() == now.rows["baseline"].tolist()
    assert table["thread"].null_count == table["pid"].null_count == now.rows["baseline"].sum()


def test_each_host_and_run_has_a_folder_of_its_own_and_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    first = parquet.write(moment(LIVE, NAMES), tmp_path)
    assert first == tmp_path / "host=worker-1" / "run=20260301T120000Z-4711" / "live.parquet"
    with pytest.raises(OutputError, match="exists"):
        parquet.write(moment(LIVE, NAMES), tmp_path)
    assert parquet.write(moment(LIVE, NAMES, host="../x"), tmp_path, run="a/b=1").parent == (
        tmp_path / "host=..%2Fx" / "run=a%2Fb%3D1"
    )
    hosts = duckdb.sql(f"SELECT DISTINCT host FROM '{tmp_path}/*/*/*.parquet' ORDER BY host").fetchall()
    assert hosts == [("../x",), ("worker-1",)]


def test_without_pyarrow_parquet_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(parquet.NoParquet) as refused:
        parquet.write(moment(LIVE, NAMES), tmp_path)
    assert "pip install 'rtetrack-frida[parquet]'" in refused.value.hint


def readme_query() -> str:
    """The SQL of the README."""
    text = (ROOT / "README.md").read_text()
    return text.partition("```sql\n")[2].partition("```")[0]


def fleet_run(host: str, growing: bool, seconds: float = 100.0) -> Moment:
    """A run in which `flow_create` leaks all along, `session_open` on this machine only if `growing`; the rest starts once."""
    names = MadeUpNames(
        {1: stack("queue_setup", "main"), 2: stack("flow_create", "main"), 3: stack("session_open", "main")},
        {1: "rx queue", 2: "flow", 3: "session"},
    )
    at = [START.monotonic_ns + round(seconds * SECOND * part / 8) for part in range(8)]
    once = [{"size_bytes": 1 << 20, "stack": 1, "label": 1, "allocated_at_ns": at[0]} for _ in range(8)]
    leaked = [{"size_bytes": 64, "stack": 2, "label": 2, "allocated_at_ns": when} for when in at]
    local = [
        {"size_bytes": 4096, "stack": 3, "label": 3, "allocated_at_ns": when} for when in (at if growing else at[-1:])
    ]
    return moment(rows(*once, *leaked, *local, {"size_bytes": 99, "baseline": True}), names, seconds, host)


def test_the_query_of_the_readme_finds_the_call_site_that_grows_on_all_machines(tmp_path: Path) -> None:
    for number in range(5):
        parquet.write(fleet_run(f"worker-{number}", growing=number != 3, seconds=10 * (number + 1)), tmp_path)
    found = duckdb.sql(readme_query().replace("fleet/", f"{tmp_path}/")).fetchall()
    assert found == [("flow_create < main", "flow", 40, 5 * 8 * 64)]


# ---- the file


def test_a_file_is_there_whole_or_not_at_all_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    with pytest.raises(TypeError), whole(path) as file:
        file.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["out"]
    with whole(path) as file:
        file.write(b"after")
    assert path.read_text() == "after" and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_where_a_file_cannot_be_written_one_sentence_says_why(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "no" / "out", "No such file"), (tmp_path, "directory")):
        with pytest.raises(OutputError, match=why), whole(path) as file:
            file.write(b"x")
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="exists"), whole(tmp_path / "out", force=False) as file:
        file.write(b"x")
