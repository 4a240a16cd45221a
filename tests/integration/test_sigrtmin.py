"""SIGRTMIN writes the dump, whoever gets it, and the program's own plans for that signal are respected."""

from __future__ import annotations

import os
import re
import signal

import pytest
from tracked import Process, Runner, Tracked, eventually

RTMIN = signal.SIGRTMIN


def action(program: Process) -> str:
    """What the program believes to have installed: its name, and its flags in hexadecimal."""
    return program.ask("query", r"^action (.*)$")[1]


def caught(program: Process) -> tuple[int, int, int]:
    """How often the program's own handler ran, with a sender's pid, and with wrong arguments."""
    found = program.ask("count", r"^caught (\d+) info (\d+) wrong (\d+)$")
    return int(found[1]), int(found[2]), int(found[3])


def wait_for_dumps(tracked: Tracked, count: int) -> None:
    eventually(lambda: len(re.findall("SIGRTMIN: .* written to", tracked.stderr)) >= count, seconds=10)


def leave(tracked: Tracked) -> None:
    tracked.send_signal(signal.SIGINT)
    assert tracked.wait() == 0, tracked.stderr


def test_to_the_program_the_dump_is_the_heap_at_that_moment(runner: Runner, engine: str) -> None:
    tracked = runner.spawn("signals", options=["--engine", engine])
    tracked.wait_for("^ready$")
    for count in range(1, 4):
        tracked.ask("allocate", "^allocated$")
        os.kill(tracked.target, RTMIN)
        wait_for_dumps(tracked, count)
        assert sum(row.type == "kept" for row in tracked.dump) == count
    assert tracked.finish() == 0
    assert tracked.stderr.count("SIGRTMIN") == 3


def test_to_the_host_it_writes_the_dump_too(runner: Runner) -> None:
    tracked = runner.spawn("signals")
    tracked.wait_for("^ready$")
    tracked.ask("allocate", "^allocated$")
    tracked.send_signal(RTMIN)
    eventually(lambda: "written to" in tracked.stderr, seconds=10)
    assert sum(row.type == "kept" for row in tracked.dump) == 1
    assert tracked.finish() == 0


@pytest.mark.by_both_compilers
@pytest.mark.parametrize("how", ["handler", "siginfo", "signal"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_programs_own_handler_runs_as_well(runner: Runner, how: str, when: str) -> None:
    program = runner.start_ready("signals")
    if when == "before":
        program.ask(f"install {how}", "^installed")
    tracked = runner.attach(program.pid)
    if when == "after":
        program.ask(f"install {how}", "^installed")
    believed = action(program)
    assert believed.startswith("handler" if how == "signal" else how)
    for count in range(1, 3):
        program.send_signal(RTMIN)
        wait_for_dumps(tracked, count)
    assert caught(program) == (2, 2 if how == "siginfo" else 0, 0)
    leave(tracked)
    assert action(program) == believed
    program.send_signal(RTMIN)
    assert program.ask("count", r"^caught 3 ")
    assert program.finish() == 0


def test_a_program_that_ignores_the_signal_is_left_alone(runner: Runner) -> None:
    program = runner.start_ready("signals", "install ignore")
    tracked = runner.attach(program.pid)
    assert action(program).startswith("ignore")
    program.send_signal(RTMIN)
    program.ask("allocate", "^allocated$")
    leave(tracked)
    assert not re.search("SIGRTMIN: .* written to", tracked.stderr)
    assert action(program).startswith("ignore")
    program.send_signal(RTMIN)
    assert program.finish() == 0


@pytest.mark.by_both_compilers
def test_without_a_handler_of_its_own_the_default_is_back_after_leaving(runner: Runner) -> None:
    program = runner.start_ready("signals")
    tracked = runner.attach(program.pid)
    assert action(program).startswith("default")
    program.send_signal(RTMIN)
    wait_for_dumps(tracked, 1)
    assert program.ask("allocate", "^allocated$")
    leave(tracked)
    assert action(program) == "default flags 0"
    program.send_signal(RTMIN)
    assert program.wait() == -RTMIN


def test_a_handler_installed_before_the_program_is_tracked_from_its_start(runner: Runner, engine: str) -> None:
    tracked = runner.spawn("signals", "install handler", options=["--engine", engine])
    tracked.wait_for("^ready$")
    assert "installed handler over default" in tracked.stdout
    os.kill(tracked.target, RTMIN)
    wait_for_dumps(tracked, 1)
    assert caught(tracked) == (1, 0, 0)
    assert tracked.ask("install default", "^installed default over handler$")
    os.kill(tracked.target, RTMIN)
    wait_for_dumps(tracked, 2)
    assert caught(tracked) == (1, 0, 0)
    assert tracked.finish() == 0


def test_a_handler_for_one_signal_only_is_called_once(runner: Runner) -> None:
    program = runner.start_ready("signals")
    tracked = runner.attach(program.pid)
    program.ask("install reset", "^installed reset over default$")
    for count in range(1, 3):
        program.send_signal(RTMIN)
        wait_for_dumps(tracked, count)
    assert caught(program) == (1, 0, 0)
    leave(tracked)
    assert action(program).startswith("default")
    assert program.finish() == 0


@pytest.mark.by_both_compilers
def test_after_kill_9_of_the_host_the_programs_handler_is_back(runner: Runner) -> None:
    program = runner.start_ready("signals", "install handler")
    before = action(program)
    tracked = runner.attach(program.pid)
    tracked.send_signal(signal.SIGKILL)
    tracked.wait()
    eventually(lambda: "frida" not in open(f"/proc/{program.pid}/maps").read(), seconds=10)
    assert action(program) == before
    program.send_signal(RTMIN)
    assert caught(program) == (1, 0, 0)
    assert program.finish() == 0
