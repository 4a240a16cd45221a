"""A tracked program that damages the session memory: the host ends in time with what was good, and touches no stranger."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked import Process, Runner, Tracked

MODES = (
    "head", "tail", "ids", "stacks", "labels", "modules", "threads", "execs", "processes", "truncate", "escapes", "everything",
)  # fmt: skip
SEEN = {"head", "ids", "stacks", "labels"}
"""Modes whose damage the host meets in any case; the others' is met with --follow-fork, by luck, or is set right."""
MOST_BYTES = 300 << 20
SECONDS = 10.0
DAMAGED = "The program's session memory is damaged"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


AS_USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all,+dac_read_search",
           "--ambient-caps=+dac_read_search", "--bounding-set=-all,+dac_read_search")  # fmt: skip
"""Nobody, who may read what root's Python consists of, and nothing else that others may not."""
RUNS = [
    *(("root" if os.geteuid() == 0 else "user", mode) for mode in MODES),
    *(("user", mode) for mode in (MODES if "RTETRACK_HOSTILE_AS_USER" in os.environ else ("processes", "everything"))
      if os.geteuid() == 0),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _who(request: pytest.FixtureRequest, runner: Runner) -> None:
    """Has everything run as the user that the test names: the program, the host and the stranger."""
    call = getattr(request.node, "callspec", None)
    if os.geteuid() == 0 and call is not None and call.params["who"] == "user":
        runner.prefix = AS_USER
        runner.folder.chmod(0o777)


@pytest.fixture
def stranger(runner: Runner) -> Iterator[Process]:
    """A process that has nothing to do with the program: left as it is, whatever the program says."""
    process = runner.start("/bin/sleep", 300)
    time.sleep(0.1)
    before = Path(f"/proc/{process.pid}/maps").read_text()
    yield process
    assert process.alive
    assert Path(f"/proc/{process.pid}/maps").read_text() == before
    assert re.search(r"^TracerPid:\t0$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)


def most_bytes_until_its_end(tracked: Tracked) -> int:
    """Waits for the end of the host, for SECONDS at the most; what it had resident at the most."""
    most, deadline = 0, time.monotonic() + SECONDS
    while tracked.alive:
        assert time.monotonic() < deadline, f"the host does not end:\n{tracked.stderr}"
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{tracked.pid}/status").read_text()):
            most = max(most, int(found[1]) << 10)
        time.sleep(0.02)
    return most


def check(tracked: Tracked, mode: str, most_bytes: int) -> None:
    told = tracked.stderr
    assert "Traceback" not in told
    assert not CONTROL.search(told)
    assert told.count(DAMAGED) <= 1
    if mode in SEEN:
        assert tracked.summary["damage"], told
        assert "damaged in the program's session memory, and left out:" in told
    assert most_bytes < MOST_BYTES
    summary = tracked.summary
    first = summary["bad_frees"][0]
    assert summary["live"]["blocks"] >= 10
    assert first["kind"] == "duplicate"
    assert "good" in told, "what lived is told"
    assert "freed twice" in told


@pytest.mark.parametrize(("who", "mode"), RUNS)
def test_a_hostile_program_that_is_spawned(runner: Runner, stranger: Process, who: str, mode: str) -> None:
    tracked = runner.spawn("hostile", mode, stranger.pid, options=["--engine", "native"])
    tracked.wait_for("^ready$")
    tracked.tell("go")
    tracked.wait_for("^done$")
    most = most_bytes_until_its_end(tracked)
    assert tracked.wait() == 0, tracked.stderr
    check(tracked, mode, most)
    assert "truncated" not in tracked.stdout
    if mode == "truncate" and who == "root":  # nobody else can open it any more: /proc/self/map_files is root's
        assert re.search("tried [1-9]", tracked.stdout)


@pytest.mark.parametrize(("who", "mode"), RUNS)
def test_a_hostile_program_that_is_attached_to_runs_on_to_its_end(
    runner: Runner, stranger: Process, who: str, mode: str
) -> None:
    program = runner.start_ready("hostile", mode, stranger.pid)
    tracked = runner.attach(program.pid)
    program.tell("go")
    program.wait_for("^done$")
    most = most_bytes_until_its_end(tracked)
    assert tracked.wait() == 0, tracked.stderr
    assert program.finish() == 0
    check(tracked, mode, most)


@pytest.mark.parametrize(("who", "mode"), RUNS)
def test_a_hostile_child_that_is_followed(runner: Runner, stranger: Process, who: str, mode: str) -> None:
    tracked = runner.spawn("hostile", mode, stranger.pid, "fork", options=["--follow-fork", "--engine", "native"])
    tracked.wait_for("^ready$")
    tracked.tell("go")
    tracked.wait_for("^done$")
    most = most_bytes_until_its_end(tracked)
    assert tracked.wait() == 0, tracked.stderr
    check(tracked, mode, most)
    if mode in ("execs", "processes"):
        assert DAMAGED in tracked.stderr
        assert set(tracked.summary["damage"]) == {"processes"}


def test_a_run_whose_session_memory_was_damaged_does_not_pass(runner: Runner, stranger: Process) -> None:
    for mode, says in (("nothing", False), ("labels", True)):
        tracked = runner.spawn(
            "hostile", mode, stranger.pid, options=["--error-exitcode", 9, "--suppressions", _all(runner)]
        )
        tracked.wait_for("^ready$")
        tracked.tell("go")
        assert tracked.wait() == (9 if says else 0), tracked.stderr
        assert bool(tracked.summary["damage"]) == says


def _all(runner: Runner) -> Path:
    path = runner.folder / "suppressions"
    path.write_text("badfree:*\n")
    return path
