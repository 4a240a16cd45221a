"""`--verify` speaks of the end, or says that it cannot and why."""

from __future__ import annotations

import os
import re
import signal

from tracked import Runner

NOT_VERIFIED = "The heap was not verified at the end: "


def test_a_run_that_a_signal_ends_says_so(runner: Runner) -> None:
    tracked = runner.spawn("waiter", options=["--verify"])
    tracked.wait_for("^ready$")
    os.kill(tracked.target, signal.SIGSEGV)
    assert tracked.wait() == 128 + signal.SIGSEGV
    assert tracked.stderr.count(NOT_VERIFIED + "the program was ended by SIGSEGV") == 1
    assert tracked.summary["verify"] is None


def test_a_program_that_executes_another_one_says_so(runner: Runner) -> None:
    tracked = runner.spawn("waiter", options=["--verify"])
    tracked.wait_for("^ready$")
    tracked.tell("exec")
    assert tracked.wait() == 0
    assert tracked.stderr.count(NOT_VERIFIED + "the program replaced itself with another one (exec)") == 1
    assert re.search(r"replaced itself with another (one|program) \(exec\).*--follow-fork", tracked.stderr)
    assert tracked.summary["verify"] is None


def test_a_daemon_that_left_says_so_once_and_is_no_pass(runner: Runner) -> None:
    tracked = runner.run("forker", "daemon", options=["--verify"])
    assert tracked.wait() == 125
    assert tracked.stderr.count(NOT_VERIFIED) == 1
    assert "are the same" not in tracked.stderr
    assert tracked.summary["verify"] is None
