"""Signals end the command in time, in every state that it and the program can be in; the program goes on unharmed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked import Process, Runner, eventually, foreign_mappings, handles_signal

IN_TIME_S = 2.0
ARRIVING_S = 1.0
AT_ONCE_S = 0.7
SLACK_S = 0.5
"""For the process's own end on a busy machine."""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextlib.contextmanager
def ends_within(tracked: Process, seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    tracked.wait(seconds=20)
    assert time.monotonic() - started < seconds + SLACK_S, tracked.stderr


def stop(program: Process) -> None:
    program.send_signal(signal.SIGSTOP)
    eventually(lambda: "\nState:\tT" in Path(f"/proc/{program.pid}/status").read_text(), seconds=5)


def goes_on(program: Process) -> None:
    """Nothing of ours stays in it, and it does what it did."""
    program.send_signal(signal.SIGCONT)
    assert program.ask("say on", "^said on$")
    eventually(lambda: not foreign_mappings(program.pid), seconds=20)
    assert program.finish() == 0


def keep_something(program: Process) -> None:
    program.ask("leak 4321", "^leaked")
    time.sleep(0.3)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("options", [[], ["--verify"]], ids=["", "verify"])
def test_a_host_leaves_a_program_that_is_stopped(runner: Runner, number: int, options: list[str]) -> None:
    program = runner.start_ready("waiter")
    tracked = runner.attach(program.pid, options=options)
    keep_something(program)
    stop(program)
    with ends_within(tracked, IN_TIME_S):
        tracked.send_signal(number)
    assert tracked.wait() == 128 + number
    assert "Traceback" not in tracked.stderr
    assert "did not let go in time" in tracked.stderr
    assert any(site["bytes"] == 4321 for site in tracked.summary["call_sites"])
    goes_on(program)


def test_a_second_signal_ends_it_at_once(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    tracked = runner.attach(program.pid)
    stop(program)
    tracked.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert tracked.alive
    with ends_within(tracked, AT_ONCE_S):
        tracked.send_signal(signal.SIGINT)
    goes_on(program)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_host_that_cannot_come_in_gives_up_when_told_to(runner: Runner, number: int) -> None:
    program = runner.start_ready("hostile", "unstoppable")
    tracked = runner.attach(program.pid, wait=False)
    eventually(lambda: handles_signal(tracked.pid, signal.SIGHUP))  # SIGINT is Python's own from the start
    time.sleep(0.3)
    with ends_within(tracked, IN_TIME_S):
        tracked.send_signal(number)
    assert tracked.wait() == 128 + number
    assert "Traceback" not in tracked.stderr
    assert program.alive
    program.tell("go")
    program.wait_for("^done$")
    assert program.finish() == 0


@pytest.mark.parametrize("mode", ["head", "everything"])
def test_a_host_leaves_a_program_that_has_damaged_the_session_memory(runner: Runner, mode: str) -> None:
    program = runner.start_ready("hostile", mode, 1)
    tracked = runner.attach(program.pid)
    program.tell("go")
    time.sleep(0.7)
    with ends_within(tracked, IN_TIME_S):
        tracked.send_signal(signal.SIGTERM)
    assert "Traceback" not in tracked.stderr
    assert tracked.summary["bad_frees"]
    program.wait_for("^done$")
    assert program.finish() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_spawned_program_that_is_stopped_hears_of_the_signal(runner: Runner, number: int) -> None:
    tracked = runner.spawn("waiter")
    tracked.wait_for("^ready$")
    os.kill(tracked.target, signal.SIGSTOP)
    time.sleep(0.3)
    with ends_within(tracked, IN_TIME_S):
        tracked.send_signal(number)
    assert tracked.wait() == 128 + number


def test_a_second_signal_of_any_kind_kills_a_spawned_program(runner: Runner) -> None:
    tracked = runner.spawn("waiter", "ignore-sigint")
    tracked.wait_for("^ready$")
    tracked.send_signal(signal.SIGINT)
    tracked.wait_for("interrupted")
    with ends_within(tracked, IN_TIME_S):
        tracked.send_signal(signal.SIGTERM)
    assert tracked.wait() == 128 + signal.SIGKILL
    assert tracked.summary["target"]["signal"] == signal.SIGKILL


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.3, 0.5])
def test_a_signal_while_a_program_is_being_started_leaves_nothing_of_it(runner: Runner, delay: float) -> None:
    tracked = runner.spawn("waiter", "ignore-sigint")
    eventually(lambda: handles_signal(tracked.pid, signal.SIGHUP))
    time.sleep(delay)
    with ends_within(tracked, IN_TIME_S):
        tracked.send_signal(signal.SIGTERM)
    assert tracked.wait() == 128 + signal.SIGTERM
    eventually(lambda: not list(runner.marked()), seconds=2)


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.6])
def test_a_signal_while_a_program_is_being_attached_to_ends_it_in_a_second_and_leaves_nothing(
    runner: Runner, delay: float
) -> None:
    program = runner.start_ready("waiter")
    before = {what: len(os.listdir(f"/proc/{program.pid}/{what}")) for what in ("task", "fd")}
    tracked = runner.attach(program.pid, wait=False)
    eventually(lambda: handles_signal(tracked.pid, signal.SIGHUP))
    time.sleep(delay)
    with ends_within(tracked, ARRIVING_S):
        tracked.send_signal(signal.SIGINT)
    assert "Traceback" not in tracked.stderr
    goes_on_as(program, before)


def goes_on_as(program: Process, before: dict[str, int]) -> None:
    """What it has open, and its threads, are as they were."""
    eventually(
        lambda: all(len(os.listdir(f"/proc/{program.pid}/{what}")) == number for what, number in before.items()),
        seconds=20,
    )
    goes_on(program)
