"""What a CI is told: exit statuses, leak checks and what suppresses them, on real programs that leak and that do not."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
from tracked import Runner, eventually

GATE = ("--error-exitcode", 99)
BOTH = (*GATE, "--leak-check=lost,growing")


def test_a_ci_is_told_by_the_exit_status_and_suppressions_pass_over_what_is_known(
    runner: Runner, tmp_path: Path
) -> None:
    sarif, recording = tmp_path / "found.sarif", tmp_path / "demo.rtrec"
    failing = runner.run("demo", options=[*GATE, "--print-suppressions", "--sarif", sarif, "-o", recording])
    assert failing.wait() == 99
    results = json.loads(sarif.read_text())["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == ["interior", "duplicate"]
    again = runner.report("summary", recording, "--sarif", tmp_path / "again.sarif")
    assert again.wait() == 0
    assert (tmp_path / "again.sarif").read_bytes() == sarif.read_bytes()
    assert "Exit status 99: 2 bad frees." in failing.stderr
    known = re.findall(r"^badfree:.*", failing.stderr, re.MULTILINE)
    suppressions = tmp_path / "known"
    suppressions.write_text("\n".join(["leak:leak_a_block", "badfree:no_such_function", *known]))
    passing = runner.run("demo", options=[*GATE, "--suppressions", suppressions])
    assert passing.wait() == 0
    assert "The suppression badfree:no_such_function named nothing." in passing.stderr
    leaking = runner.run("badfrees", "leak", options=[*GATE, "--leak-check", "--max-bytes", "1k"])
    assert leaking.wait() == 99
    assert "900 bytes in 3 blocks leaked." in leaking.stderr
    assert re.search(r"bytes were live at the most, 1,024 are allowed\.", leaking.stderr)
    options = [*GATE, "--leak-check=all", "--suppressions", suppressions]
    assert runner.run("badfrees", "leak", options=options).wait() == 0


@pytest.mark.parametrize("end", [(), ("cleanup",)], ids=["exit", "cleanup"])
def test_blocks_that_nothing_points_to_at_the_end_fail_a_run_until_they_are_suppressed(
    runner: Runner, tmp_path: Path, engine: str, end: tuple[str, ...]
) -> None:
    options = ("--engine", engine, *BOTH)
    leaking = runner.run("leaky", "lose", *end, options=[*options, "--print-suppressions"])
    assert leaking.wait() == 99
    assert (
        "Exit status 99: 416 bytes in 2 blocks lost: nothing points there any more; by them 100 bytes in 1 block."
        in leaking.stderr
    )
    lost = leaking.summary["lost"]
    assert (lost["blocks"], lost["bytes"], lost["indirectly"]["blocks"], lost["held"]) == (2, 416, 1, 0)
    assert {site["backtrace"][-1]["function"] for site in lost["call_sites"]} >= {"_start"} or engine == "portable"
    assert leaking.summary["growing"] == []
    suppressions = tmp_path / "known"
    suppressions.write_text("\n".join(re.findall(r"^leak:.*", leaking.stderr, re.MULTILINE)))
    passing = runner.run("leaky", "lose", *end, options=[*options, "--suppressions", suppressions])
    assert passing.wait() == 0


def test_what_something_points_to_is_not_lost_and_what_grows_and_is_held_grows(runner: Runner, tmp_path: Path) -> None:
    growing = runner.run("leaky", "grow", options=[*BOTH, "-o", tmp_path / "grow.rtrec"])
    assert growing.wait() == 99
    (site,) = growing.summary["growing"]
    assert 0 < site["grown_bytes"] < site["bytes"]
    assert f"Exit status 99: 1 call site grew without an end, by {site['grown_bytes']:,} bytes." in growing.stderr
    assert site["backtrace"][0]["function"] == "keep_one" and site["blocks"] == 200
    assert growing.summary["lost"]["blocks"] == 0 and growing.summary["lost"]["held"] == 200
    replayed = runner.report("summary", "--json", tmp_path / "grow.rtrec")
    assert replayed.wait() == 0
    assert json.loads(replayed.stdout) == growing.summary
    steady = runner.run("leaky", "churn", "cleanup", options=(*GATE, "--leak-check=lost,growing,all"))
    assert steady.wait() == 0
    assert steady.summary["growing"] == [] and steady.summary["leaks"]["blocks"] == 0


def test_a_program_that_could_not_be_looked_at_does_not_pass(runner: Runner) -> None:
    killed = runner.run("leaky", "keep", "killed", options=BOTH)
    assert killed.wait() == 99
    assert killed.summary["lost"] is None
    assert (
        "Lost blocks could not be looked for. The program ended neither by rte_eal_cleanup nor by exit" in killed.stderr
    )
    unlimited = runner.run("leaky", "keep", options=["--leak-check=lost"])
    assert unlimited.wait() == 0 and unlimited.summary["lost"]["blocks"] == 0


def test_a_program_that_is_let_go_is_looked_at_before(runner: Runner) -> None:
    program = runner.start("held")
    eventually(lambda: "held-READY" in Path(f"/proc/{program.pid}/comm").read_text())
    tracked = runner.attach(program.pid, options=[*BOTH, "--duration", 0.2], wait=False)
    assert tracked.finish() == 99
    assert tracked.summary["lost"]["blocks"] == 3
    assert program.alive


def test_a_program_that_ends_does_not_wait_for_a_host_that_is_stopped_or_gone(runner: Runner, engine: str) -> None:
    program = runner.start_ready("waiter")
    host = runner.attach(program.pid, options=["--engine", engine, *BOTH])
    host.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    program.close_input()
    assert program.wait(seconds=15) == 0
    assert time.monotonic() - begun < 10
    host.send_signal(signal.SIGCONT)
    assert host.wait() == 99
    assert host.summary["lost"] is None
