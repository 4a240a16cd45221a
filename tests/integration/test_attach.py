"""Joining a running program and leaving it again: it runs on as if nobody had been there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from tracked import Runner, assert_untouched, eventually, foreign_mappings, functions, resident_kib


def options(engine: str) -> list[str]:
    return ["--engine", engine]


def test_attach_by_pid_sees_what_is_allocated_from_then_on(runner: Runner, engine: str) -> None:
    program = runner.start_ready("waiter")
    tracked = runner.attach(program.pid, options=options(engine))
    program.ask("leak 1234", "^leaked")
    program.ask("bad", "^freed twice")
    tracked.send_signal(signal.SIGINT)
    assert tracked.wait() == 0
    found = tracked.summary
    (bad,) = found["bad_frees"]
    assert bad["kind"] == "duplicate"
    assert functions(bad["backtrace"])[:2] == ["free_twice", "main"]
    (site,) = [site for site in found["call_sites"] if "keep" in functions(site["backtrace"])]
    assert (site["blocks"], site["bytes"]) == (1, 1234)
    assert found["target"]["pid"] == program.pid
    assert found["target"]["exit_status"] is None
    assert found["target"]["signal"] is None
    assert_untouched(program.pid)
    assert program.finish() == 0


def test_attach_by_name(runner: Runner, tmp_path: Path) -> None:
    name = f"named{os.getpid()}"
    shutil.copy(runner.program("waiter"), tmp_path / name)
    program = runner.start_ready(str(tmp_path / name))
    tracked = runner.attach(name, options=["--duration", 0.2])
    assert tracked.wait() == 0
    assert tracked.summary["target"]["pid"] == program.pid
    assert program.finish() == 0


def test_an_ambiguous_name_lists_the_candidates(runner: Runner, tmp_path: Path) -> None:
    name = f"twin{os.getpid()}"
    shutil.copy(runner.program("waiter"), tmp_path / name)
    pids = [runner.start_ready(str(tmp_path / name)).pid for _ in range(2)]
    tracked = runner.attach(name, wait=False)
    assert tracked.wait() not in (0, None)
    assert all(str(pid) in tracked.stderr for pid in pids)
    assert all(not foreign_mappings(pid) for pid in pids)


def test_duration_leaves_by_itself(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    tracked = runner.attach(program.pid, options=["--duration", 1])
    hooked = time.monotonic()
    assert tracked.wait() == 0
    assert 0.5 < time.monotonic() - hooked < 15
    assert_untouched(program.pid)
    assert program.ask("say still here", "^said still here$")


def test_a_signal_in_the_moment_of_attaching_still_ends_in_order(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    tracked = runner.attach(program.pid, wait=False)
    tracked.wait_for("tracking .* functions", "stderr")
    tracked.send_signal(signal.SIGTERM)
    assert tracked.wait() == 0
    assert tracked.summary["target"]["ending"] == "detached"
    assert_untouched(program.pid)


def test_kill_9_of_a_host_that_spawned_leaves_the_program_running(runner: Runner, engine: str) -> None:
    tracked = runner.spawn("waiter", options=options(engine))
    tracked.wait_for("^ready$")
    child = tracked.target
    tracked.send_signal(signal.SIGKILL)
    eventually(lambda: not foreign_mappings(child), seconds=10)
    tracked.tell("say still here")
    tracked.wait_for("^said still here$")


def fridas_library_kib(pid: int) -> int:
    counted, total = False, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counted = "memfd:frida-agent" in line
        elif counted and line.startswith("Rss:"):
            total += int(line.split()[1])
    assert total > 0
    return total


def test_the_program_may_end_while_it_is_tracked(runner: Runner, engine: str) -> None:
    program = runner.start_ready("waiter")
    tracked = runner.attach(program.pid, options=options(engine))
    program.ask("leak 99", "^leaked")
    assert program.finish() == 0
    assert tracked.wait() == 0
    assert tracked.summary["target"]["ending"] == "gone"
    assert tracked.summary["events"]["allocations"] >= 1


def test_kill_9_of_the_program_loses_no_event_before_it(runner: Runner, engine: str) -> None:
    count = 5000
    bare = runner.run("nasty", "status", 0, options=options(engine)).summary["events"]
    tracked = runner.run("nasty", "events-then-sigkill", count, options=options(engine))
    assert tracked.wait() == 128 + signal.SIGKILL
    found = tracked.summary
    assert found["events"]["allocations"] - bare["allocations"] == count
    assert found["events"]["frees"] - bare["frees"] == count // 2
    assert found["events"]["lost"] == 0
    assert found["target"]["signal"] == signal.SIGKILL
    (site,) = [site for site in found["call_sites"] if "events_then_sigkill" in functions(site["backtrace"])]
    assert (site["blocks"], site["bytes"]) == (count // 2, count // 2 * 64)


def test_a_second_tracker_is_refused_and_the_first_goes_on(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    first = runner.attach(program.pid)
    second = runner.attach(program.pid, wait=False)
    assert second.wait() not in (0, None)
    assert "already being tracked" in second.stderr
    program.ask("leak 777", "^leaked")
    first.send_signal(signal.SIGINT)
    assert first.wait() == 0
    assert first.summary["events"]["allocations"] == 1


def test_a_program_that_has_locked_its_memory_grows_by_little(runner: Runner) -> None:
    program = runner.start_ready("waiter", "lock")
    before = resident_kib(program.pid)
    tracked = runner.attach(program.pid)
    program.ask("leak 777", "^leaked")
    grown = resident_kib(program.pid) - before
    assert grown < 140 * 1024, f"{grown} KiB"
    assert fridas_library_kib(program.pid) < 12 * 1024  # of 34 MB, all of which was locked as it was loaded
    tracked.send_signal(signal.SIGINT)
    assert tracked.wait() == 0
    # glibc keeps the stacks of Frida's threads that ended, up to 40 MiB, and under mlockall they are all there.
    eventually(lambda: resident_kib(program.pid) - before < 48 * 1024, seconds=5)


@pytest.mark.by_both_compilers
def test_attaching_again_after_leaving_works(runner: Runner, engine: str) -> None:
    program = runner.start_ready("waiter")
    for size in (501, 502, 503):
        tracked = runner.attach(program.pid, options=options(engine))
        program.ask(f"leak {size}", "^leaked")
        tracked.send_signal(signal.SIGINT)
        assert tracked.wait() == 0
        sites = tracked.summary["call_sites"]
        assert [site["bytes"] for site in sites if "keep" in functions(site["backtrace"])] == [size]
    assert program.finish() == 0
