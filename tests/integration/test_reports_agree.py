"""Every report on recordings of DPDK's own programs: their sums agree with each other, and with DPDK's heap, to the byte."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tracked import Runner, Tracked

from frida_rtetrack.commands.cli import cli

EAL = ("--no-huge", "-m", "512", "--no-pci", "--no-telemetry", "--no-shconf", "-l", "0-1")
TESTPMD_STEPS = ("start", "stop", "port stop all", "port close 1")
PROMPT = "testpmd> "


def told(*words: object) -> str:
    result = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def document(*words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(*words, "--json"))
    return found


def run_testpmd(runner: Runner, path: Path) -> Tracked:
    """Through start, traffic, port close, quit."""
    words = [
        *EAL,
        "--file-prefix",
        f"r{os.getpid()}",
        "--vdev=net_null0",
        "--vdev=net_null1",
        "--",
        "-i",
        "--no-mlockall",
    ]
    tracked = runner.spawn("dpdk-testpmd", *words, "--total-num-mbufs=2048", options=["-o", path, "--verify"])
    tracked.wait_for(PROMPT)
    for step in TESTPMD_STEPS:
        tracked.ask(step, PROMPT)
    tracked.tell("quit")
    tracked.finish()
    return tracked


def run_hash_autotest(runner: Runner, path: Path) -> Tracked:
    return runner.run("dpdk-test", *EAL, "hash_autotest", options=["-o", path, "--verify"])


@pytest.mark.parametrize("program", [run_testpmd, run_hash_autotest])
def test_every_report_adds_up_to_what_was_live(runner: Runner, program: Any) -> None:
    path = runner.folder / "run.rtrec"
    said = program(runner, path).summary
    assert said["verify"] == {"missing": [], "unexpected": []}
    assert said["events"]["lost"] == 0
    assert document("summary", path) == said
    for when in ((), ("--peak",), ("--at-cleanup",)):
        table = document("table", *when, path)
        live = table["bytes"], table["blocks"]
        moment = document("summary", *when, path)["live"]
        assert (moment["bytes"], moment["blocks"]) == live
        assert sum_of(table["call_sites"]) == live
        tree = document("tree", *when, path)["tree"]
        assert (tree["bytes"], tree["blocks"]) == live
        rows = list(csv.DictReader(io.StringIO(told("export", "--format", "csv", *when, path))))
        assert (sum(int(row["bytes"]) for row in rows), len(rows)) == live
        folded = told("export", "--format", "folded", *when, path).splitlines()
        assert sum(int(line.rpartition(" ")[2]) for line in folded) == live[0]
        assert leaks_add_up(document("leaks", *when, path)) == live
        assert page_adds_up(runner, path, when) == live
    assert document("table", "--peak", path)["bytes"] == said["peak"]["bytes"]
    stats = document("stats", path)
    assert stats["allocations"] == said["events"]["allocations"] + said["events"]["resizes"]
    for by in ("by_type", "by_socket", "by_thread"):
        assert sum(used["size_bytes"] for used in stats[by]) == stats["size_bytes"]
    grown = document("diff", path)
    assert grown["bytes"] == [0, said["live"]["bytes"]]
    assert sum(site["bytes"][1] for site in grown["changed"]) == said["live"]["bytes"]
    soon = document("table", "--temporary", 5, path)
    assert 0 < soon["blocks"] <= said["events"]["frees"]
    assert sum(site["allocations"] for site in document("table", path)["call_sites"]) <= said["events"]["allocations"]


def sum_of(sites: list[dict[str, Any]]) -> tuple[int, int]:
    return sum(site["bytes"] for site in sites), sum(site["blocks"] for site in sites)


def leaks_add_up(leaks: dict[str, Any]) -> tuple[int, int]:
    """What grows, what is still held, and EAL's own are all that is live; nobody looked for what is lost."""
    parts = (*leaks["growing"], *leaks["still_held"], leaks["eal"])
    assert leaks["lost"] is None
    return sum_of(list(parts))


def page_adds_up(runner: Runner, path: Path, when: tuple[str, ...]) -> tuple[int, int]:
    """The bytes and blocks of the moment that the page shows first."""
    page = runner.folder / "page.html"
    told("flamegraph", "--force", *when, "-o", page, path)
    assert page.stat().st_size < 500_000
    raw = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page.read_text(), re.DOTALL)
    assert raw is not None
    data = json.loads(raw[1])
    size_bytes = blocks = 0
    for changes in data["sites"]["changes"]:
        at = 0
        for step, more_blocks, more_bytes in zip(*[iter(changes)] * 3, strict=True):
            at += step
            if at <= data["chosen"]:
                blocks, size_bytes = blocks + more_blocks, size_bytes + more_bytes
    return size_bytes, blocks


def test_a_full_disk_ends_the_recording_and_neither_the_tracking_nor_the_program(runner: Runner) -> None:
    if os.geteuid() != 0:
        pytest.skip("a small file system takes root to mount")
    disk = runner.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=260k", "tmpfs", disk], check=True)
    try:
        tracked = runner.run("load", 1, 8, 6, runner.folder / "pulse", options=["-o", disk / "run.rtrec"])
        assert tracked.wait() == 0
        assert re.search(r"The recording .* ended early: .*(full|I/O)", tracked.stderr), tracked.stderr
        assert tracked.summary["events"]["lost"] == 0
        result = CliRunner().invoke(cli, ["table", str(disk / "run.rtrec")], catch_exceptions=False)
        assert result.exit_code == 0
        assert "was not ended in order" in result.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_program_that_is_killed_has_all_of_its_recording(runner: Runner) -> None:
    path = runner.folder / "run.rtrec"
    tracked = runner.spawn("held", options=["-o", path])
    tracked.wait_for("tracking .* functions", "stderr")
    while b"READY" not in Path(f"/proc/{tracked.target}/comm").read_bytes():
        assert tracked.alive
    os.kill(tracked.target, 9)
    tracked.finish()
    found = document("summary", path)
    assert (found["target"]["signal"], found["target"]["ending"]) == (9, "killed")
    assert found == tracked.summary
