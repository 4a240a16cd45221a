"""Joining a program that works at full speed on all processors, and leaving it: it has its speed back."""

from __future__ import annotations

import gc
import os
import signal
import time

import pytest
from tracked import Load, Runner, assert_untouched, eventually, foreign_mappings, resident_kib

from frida_rtetrack import Host, Options
from frida_rtetrack.stream.events import StackEnd

ROUNDS = int(os.environ.get("RTETRACK_TEST_ROUNDS", "12"))
"""Attach/detach rounds under load."""

FAST_ENOUGH = 0.6
"""Of the bare rate: other work on the machine moves it by that much; a hook left behind would cost far more."""


def assert_at_bare_speed(load: Load, runner: Runner) -> None:
    """Compared with the same program untracked at that moment, as the machine's speed changes with its other work."""
    rates = []
    for _ in range(4):
        rates.append((load.rate(), load.bare_rate(runner)))
        if rates[-1][0] > FAST_ENOUGH * rates[-1][1]:
            return
    raise AssertionError(f"pairs in 100 ms and what they should be: {rates}")


@pytest.mark.by_both_compilers
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_leaving_under_load_gives_the_program_its_speed_back(runner: Runner, number: signal.Signals) -> None:
    load = runner.start_load(2)
    tracked = runner.attach(load.pid)
    load.rate()
    tracked.send_signal(number)
    assert tracked.wait() == 0
    assert tracked.summary["target"]["ending"] == "detached"
    assert_at_bare_speed(load, runner)
    assert_untouched(load.pid)
    assert tracked.summary["bad_frees"] == []
    assert tracked.summary["events"]["lost"] == 0
    load.stop()


@pytest.mark.by_both_compilers
def test_kill_9_of_the_host_under_load_leaves_no_hook_behind(runner: Runner, engine: str) -> None:
    load = runner.start_load(2)
    tracked = runner.attach(load.pid, options=["--engine", engine])
    load.rate()
    tracked.send_signal(signal.SIGKILL)
    assert tracked.wait() == -signal.SIGKILL
    killed = time.monotonic()
    eventually(lambda: not foreign_mappings(load.pid), seconds=10)
    gone = time.monotonic() - killed
    assert_at_bare_speed(load, runner)
    assert_untouched(load.pid)
    assert load.process.alive
    assert gone < 3, f"Frida's mappings were there for {gone:.1f} s"
    load.stop()


@pytest.mark.timeout(600)
def test_attaching_and_leaving_many_times_under_load_neither_crashes_nor_leaks(runner: Runner) -> None:
    load = runner.start_load(2, seconds=600)
    sizes = []
    script = runner.folder / "rounds.py"
    script.write_text(
        "import sys\n"
        "from frida_rtetrack import Host\n"
        "for round in range(int(sys.argv[2])):\n"
        "    with Host.attach(int(sys.argv[1])) as host:\n"
        "        host.wait(0.05)\n"
        "    stats = host.summary()\n"
        "    print('round', round, stats.allocations > 0, stats.lost, len(stats.bad_frees), flush=True)\n"
    )
    rounds = runner.python(script, load.pid, ROUNDS)
    for number in range(ROUNDS):
        assert rounds.wait_for(rf"^round {number} (\S+ \S+ \S+)$")[1] == "True 0 0"
        sizes.append(resident_kib(load.pid))
    assert rounds.finish() == 0, rounds.stderr
    assert_untouched(load.pid)
    assert_at_bare_speed(load, runner)
    assert len(os.listdir(f"/proc/{load.pid}/fd")) < 30
    assert resident_kib(load.pid) - sizes[0] < 16 * 1024, sizes
    load.stop()


def test_every_pair_of_a_threaded_load_is_counted(runner: Runner, engine: str) -> None:
    path = runner.folder / "load.txt"
    tracked = runner.run("load", 2, 8, 1, path, options=["--engine", engine])
    assert tracked.wait() == 0, tracked.stderr
    pairs = int(tracked.wait_for(r"^total (\d+)$")[1])
    bare = runner.run("load", 0, 8, 0, path, options=["--engine", engine]).summary
    found = tracked.summary
    assert pairs > 100
    assert found["events"]["lost"] == 0
    assert found["events"]["allocations"] - bare["events"]["allocations"] == pairs
    assert found["events"]["frees"] - bare["events"]["frees"] == pairs
    assert found["live"] == bare["live"]
    assert found["bad_frees"] == []


def test_no_stack_is_cut_because_a_module_was_not_known_yet(runner: Runner) -> None:
    load = runner.start_load(2)
    for _ in range(3):
        with Host.attach(load.process.pid, Options(dump_path=runner.folder / "dump")) as host:
            host.sync()
            assert host._group.memory.header["walks_ended"][StackEnd.NO_UNWIND_TABLE] == 0
            assert host.stats().allocations > 0
    del host
    gc.collect()  # else the session's memory is still mapped here, and this process looks like one that is tracked
