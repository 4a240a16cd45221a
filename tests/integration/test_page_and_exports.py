"""A recording of a real program for other eyes and tools: everything that is written of it says the same."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet
import pytest
from tracked import Runner

from frida_rtetrack import Host
from frida_rtetrack.commands.moments import When
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.reporters.exports import blocks, folded
from frida_rtetrack.reporters.page.contents import contents, leaks_of, page_of
from frida_rtetrack.reports.moment import Filters

PAGE_AT_MOST = 500_000


def report(*words: Any, expect: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Runs `rtetrack-frida WORDS`."""
    command = [sys.executable, "-m", "frida_rtetrack", *map(str, words)]
    run = subprocess.run(command, capture_output=True, timeout=120)
    assert run.returncode == expect, run.stderr
    assert b"Traceback" not in run.stderr
    return run


@pytest.fixture(scope="module")
def testpmd(module_runner: Runner) -> Path:
    """A recording of dpdk-testpmd: start, traffic, a port closed, the end."""
    if shutil.which("dpdk-testpmd") is None:
        pytest.skip("Debian's package dpdk-dev is not installed")
    path = module_runner.folder / "testpmd.recording"
    words = [
        *("--no-huge", "-m", "512", "--no-pci", "--no-telemetry", "--no-shconf", "--file-prefix", f"t{os.getpid()}"),
        *("--vdev", "net_null0", "--vdev", "net_null1", "--", "-i", "--total-num-mbufs=2048"),
    ]
    tracked = module_runner.spawn("dpdk-testpmd", *words, options=["-o", path])
    tracked.wait_for("testpmd> ")
    for line in ("start", "stop", "port stop all", "port close 1"):
        tracked.tell(line)
        time.sleep(0.3)
    tracked.tell("quit")
    assert tracked.finish() == 0, tracked.stderr
    return path


def live(path: Path, when: When) -> tuple[int, int]:
    """Blocks and bytes of a moment, as they are replayed."""
    with Recording(path) as recording:
        rows = when.moment(recording)[1].rows
    return rows.size, int(rows["size_bytes"].sum())


@pytest.mark.parametrize(
    ("option", "when"),
    [("--peak", When(peak=True)), ("--at-cleanup", When(at_cleanup=True)), ("--at=1.5", When(at_seconds=1.5))],
)
def test_every_export_of_a_moment_adds_up_to_what_was_live(
    testpmd: Path, tmp_path: Path, option: str, when: When
) -> None:
    expected = live(testpmd, when)
    assert expected[0] > 0

    def exported(name: str) -> str:
        return report("export", testpmd, "--format", name, option).stdout.decode()

    stacks = [int(line.rpartition(" ")[2]) for line in exported("folded").splitlines()]
    counts = [int(line.rpartition(" ")[2]) for line in exported("folded-blocks").splitlines()]
    assert (sum(counts), sum(stacks)) == expected
    document = json.loads(exported("speedscope"))
    assert [each["endValue"] for each in document["profiles"]] == [expected[1], expected[0]]
    lines = list(csv.DictReader(io.StringIO(exported("csv"))))
    assert (len(lines), sum(int(line["bytes"]) for line in lines)) == expected
    report("export", testpmd, "--format", "parquet", option, "-o", tmp_path / "fleet", "--run", "one")
    (file,) = (tmp_path / "fleet").glob("host=*/run=one/live.parquet")
    table = pyarrow.parquet.read_table(file, partitioning=None)
    assert (table.num_rows, sum(table["bytes"].to_pylist())) == expected
    assert duckdb.sql(f"SELECT sum(bytes) FROM '{file}'").fetchall() == [(expected[1],)]


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed (Debian: golang-go)")
def test_go_tool_pprof_names_testpmds_own_functions(testpmd: Path, tmp_path: Path) -> None:
    path = tmp_path / "live.pb.gz"
    report("export", testpmd, "--format", "pprof", "--peak", "-o", path)
    gzip.decompress(path.read_bytes())
    command = ["go", "tool", "pprof", "-symbolize=none", "-unit=bytes", "-top", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HOME": str(tmp_path)}, timeout=60)
    assert run.returncode == 0, run.stderr
    _, size = live(testpmd, When(peak=True))
    assert run.stdout.startswith("File: dpdk-testpmd\n") and f"{size}B total" in run.stdout
    assert "rte_mempool" in run.stdout or "rte_pktmbuf" in run.stdout


def test_the_page_is_small_and_its_moments_are_those_of_the_replay(testpmd: Path, tmp_path: Path) -> None:
    pages = {}
    for name, options in (("end", ()), ("peak", ("--peak",)), ("cleanup", ("--at-cleanup",))):
        path = tmp_path / f"{name}.html"
        report("flamegraph", testpmd, "-o", path, *options)
        assert path.stat().st_size < PAGE_AT_MOST
        html = path.read_text()
        pages[name] = json.loads(html.partition('id="data">')[2].partition("</script>")[0])
    assert chosen(pages["end"]) == live(testpmd, When())
    assert chosen(pages["peak"]) == live(testpmd, When(peak=True))
    assert chosen(pages["cleanup"]) == live(testpmd, When(at_cleanup=True))
    assert {what for _, what in pages["end"]["marks"]} == {"rte_eal_init returned", "rte_eal_cleanup"}
    assert pages["end"]["title"] == "dpdk-testpmd" and pages["end"]["notes"] == [] and pages["end"]["bad_frees"] == []
    assert pages["end"]["leaks"]


def chosen(page: dict[str, Any]) -> tuple[int, int]:
    """Blocks and bytes of the moment that the page shows first."""
    count = size = 0
    for changes in page["sites"]["changes"]:
        moment = 0
        for gap, more_blocks, more_bytes in zip(changes[::3], changes[1::3], changes[2::3], strict=True):
            moment += gap
            if moment <= page["chosen"]:
                count, size = count + more_blocks, size + more_bytes
    return count, size


def test_the_page_has_the_bad_frees_with_their_stacks_and_the_filters_pick_its_blocks(runner: Runner) -> None:
    path, page = runner.folder / "recording", runner.folder / "recording.html"
    runner.run("demo", options=["-o", path])
    told = report("flamegraph", path).stderr.decode()
    assert told == f"rtetrack-frida: the page is {page}\n"
    again = report("flamegraph", path, expect=125).stderr.decode()
    assert again == f"rtetrack-frida: {page} exists. Give another path, or --force to replace it.\n"
    report("flamegraph", path, "--force", "--type", "no such type")
    shown = json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text())[0])
    assert shown["sites"]["stack"] == []
    kinds = {each["kind"]: [stack["title"].split()[0] for stack in each["stacks"]] for each in shown["bad_frees"]}
    assert kinds["duplicate"] == ["This", "First", "Allocated"]
    report("flamegraph", path, "--base", path, "-o", runner.folder / "same.html")
    same = json.loads(re.findall(r'id="data">(.*?)</script>', (runner.folder / "same.html").read_text())[0])
    assert [sum(changes[1::3]) for changes in same["sites"]["changes"]] == [
        blocks for blocks, _ in same["sites"]["base"]
    ]


def test_a_running_program_gives_the_same_page_and_exports(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    with Host.attach(program.pid) as host:
        for line, answer in (("leak 4321", "^leaked"), ("bad", "^freed twice$")):
            program.ask(line, answer)
        moment = host.moment()
        stats = host.stats()
        lost = leaks_of(host.leaks())
        page = page_of(moment, leaks=lost, bad_frees=host.bad_frees)
        assert (moment.rows.size, int(moment.rows["size_bytes"].sum())) == (stats.live_blocks, stats.live_bytes)
        for write, values in ((blocks.write, "bytes"), (folded.write, "")):
            file = io.BytesIO()
            write(moment, file)
            lines = file.getvalue().decode().splitlines()
            sizes = (
                [row[values] for row in csv.DictReader(lines)]
                if values
                else [line.rpartition(" ")[2] for line in lines]
            )
            assert sum(map(int, sizes)) == stats.live_bytes
        shown = contents(page)
        assert sum(changes[2] for changes in shown["sites"]["changes"]) == stats.live_bytes
        assert 4321 in [leak["bytes"] for leak in shown["leaks"] if leak["kind"] == "lost"]
        assert [bad["kind"] for bad in shown["bad_frees"]] == ["duplicate"]
        assert (
            moment.only(Filters(type="<baseline>")).rows.size + moment.only(Filters(thread="*")).rows.size
            == stats.live_blocks
        )


def test_a_short_run_is_seen_from_its_first_event_on(runner: Runner) -> None:
    path, page = runner.folder / "recording", runner.folder / "recording.html"
    runner.run("demo", options=["-o", path])
    report("flamegraph", path)
    shown = json.loads(re.findall(r'id="data">(.*?)</script>', page.read_text())[0])
    live_bytes = {chosen(shown | {"chosen": moment})[1] for moment in range(len(shown["moments"]))}
    assert len(live_bytes) > 3 and 0 not in live_bytes


def test_what_cannot_be_is_said_in_a_sentence(runner: Runner, tmp_path: Path) -> None:
    path = runner.folder / "recording"
    runner.run("realloc", options=["-o", path])
    for words, why in (
        (("export", tmp_path / "none", "--format", "csv"), "cannot be read: No such file"),
        (("export", path, "--format", "parquet"), "needs a directory"),
        (("export", path, "--format", "csv", "--run", "x"), "--run names a run"),
        (("export", path, "--format", "csv", "-o", tmp_path / "no" / "out"), "cannot be written: No such file"),
        (("export", path, "--format", "csv", "--peak", "--at", "1"), "name different moments"),
        (("flamegraph", __file__), "is no recording"),
        (("flamegraph", path, "-o", tmp_path / "x.html", "--base", tmp_path / "none"), "cannot be read: No such file"),
    ):
        told = report(*words, expect=125).stderr.decode()
        assert why in told and len(told.splitlines()) == 1, told
    assert not list(tmp_path.glob("*.html*")) and not (tmp_path / "no").exists()
    with subprocess.Popen([sys.executable, "-m", "frida_rtetrack", "export", path, "--format", "csv"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as reader:  # fmt: skip
        assert reader.stdout is not None and reader.stderr is not None
        reader.stdout.close()
        assert reader.stderr.read() == b"" and reader.wait() == 0
