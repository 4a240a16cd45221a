"""Coming into a program and leaving it while it is never at rest: it does not notice.

About a minute in CI; by hand for as long as you like: `RTETRACK_ARRIVAL_ROUNDS=1000 pytest tests/integration/test_arrival.py`.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest
from restless import LOADS, Restless
from tracked import Accusations, Runner, eventually, foreign_mappings

from frida_rtetrack import Host, Options
from frida_rtetrack.errors import ArrivalRefused, NoSafeMoment
from frida_rtetrack.target import process
from frida_rtetrack.target.arrival.modules import AddressMap, Memory

ROUNDS = int(os.environ.get("RTETRACK_ARRIVAL_ROUNDS", "60")) // len(LOADS)
"""Of attaching and leaving, for each load."""

KILLS = int(os.environ.get("RTETRACK_ARRIVAL_KILLS", "6"))
KILL_WITHIN_S = 1.5
"""One round of coming and leaving takes so long, on a machine that has other work."""
GATED_S = 25.0
"""Who loads a library or forks waits so long, at most, for an agent that leaves without a host (standin.S: FRIDA_PATIENCE_MS)."""


@pytest.mark.timeout(120 + 20 * ROUNDS)
@pytest.mark.parametrize("actors", [pytest.param(actors, id=name) for name, actors in LOADS.items()])
def test_attaching_and_leaving_goes_unnoticed(runner: Runner, actors: tuple[str, ...]) -> None:
    program = Restless(runner, *actors)
    program.assert_well()
    with Host.attach(program.pid):  # Frida's dependencies, libdl and the like, are never unloaded
        pass
    usual = program.usual_traces()
    refused = stayed = 0
    for _ in range(ROUNDS):
        observer = Accusations()
        try:
            with Host.attach(program.pid, Options(dump_on_bad_free=False), observer) as host:
                host.wait(0.05)
                program.assert_well()
        except NoSafeMoment:
            refused += 1
        program.assert_well()
        assert observer.said == []
        if observer.stayed:
            stayed += 1
            usual = program.usual_traces()
        program.assert_left_as(usual)
    print(f"{ROUNDS} rounds, {refused} refused, {stayed} stayed, actors {program.actors()}")
    assert refused <= ROUNDS // 4
    assert stayed <= 1 + ROUNDS // 20


@pytest.mark.parametrize("more", [(), ("--follow-fork",), ("--verify",)], ids=["", "follow-fork", "verify"])
def test_forked_children_of_a_spawned_program_wait_for_nothing(runner: Runner, more: tuple[str, ...]) -> None:
    program = Restless(runner, "fork", "rare forks", "threads", spawned_with=["--no-dump-on-bad-free", *more])
    for _ in range(5):
        time.sleep(0.5)
        program.assert_well()


@pytest.mark.timeout(120 + 30 * KILLS)
def test_kill_9_of_the_host_at_any_moment_of_coming_and_leaving_is_survived(runner: Runner) -> None:
    script = runner.folder / "come_and_go.py"
    script.write_text(
        "import sys\n"
        "from frida_rtetrack import Host\n"
        "print('begins', flush=True)\n"
        "while True:\n"
        "    Host.attach(int(sys.argv[1])).close()\n"
    )
    for _, actors in zip(range(KILLS), itertools.cycle(LOADS.values()), strict=False):
        program = Restless(runner, *actors)
        for _ in range(2):
            host = runner.python(script, program.pid)
            host.wait_for("^begins$")
            time.sleep(random.uniform(0, KILL_WITHIN_S))
            host.send_signal(signal.SIGKILL)
            host.wait()
            program.assert_well(GATED_S)
            eventually(lambda pid=program.pid: "rtetrack-session" not in Path(f"/proc/{pid}/maps").read_text())
            time.sleep(0.2)  # in which Frida's agent leaves by itself
            program.assert_well(GATED_S)
        Host.attach(program.pid).close()
        program.assert_well()
        program.process.send_signal(signal.SIGKILL)


def test_an_agent_closes_the_gate_of_a_program_whose_last_host_was_killed_too(runner: Runner) -> None:
    program = Restless(runner, "wait", "loads")
    led_to = []
    for _ in range(2):
        kill_one_that_tracks(runner, program.pid)
        eventually(lambda: not foreign_mappings(program.pid))
        led_to.append(calls_through(program.pid, "dlopen"))
        program.assert_well(GATED_S)
    assert led_to[0] != led_to[1]


def test_who_comes_right_after_a_host_was_killed_waits_for_its_agent(runner: Runner) -> None:
    program = Restless(runner, "compute", "signals", "malloc")
    for _ in range(4):
        kill_one_that_tracks(runner, program.pid)
        with Host.attach(program.pid):
            program.assert_well()
    program.assert_well()
    assert foreign_mappings(program.pid) == []


def kill_one_that_tracks(runner: Runner, pid: int) -> None:
    script = runner.folder / "stay.py"
    script.write_text(
        "import sys, time\n"
        "from frida_rtetrack import Host\n"
        "host = Host.attach(int(sys.argv[1]))\n"
        "print('tracks', flush=True)\n"
        "time.sleep(100)\n"
    )
    host = runner.python(script, pid)
    host.wait_for("^tracks$")
    host.send_signal(signal.SIGKILL)
    host.wait()


def calls_through(pid: int, function: str) -> int:
    """Where the program's own calls of a function of a library go."""
    memory = Memory(pid)
    program = AddressMap(memory).program
    assert program is not None
    [(_, where)] = program.imports([function])
    return memory.word(where)


def test_the_stand_in_leaves_by_itself_when_its_host_was_killed(runner: Runner) -> None:
    program = Restless(runner, "compute")
    usual = program.usual_traces()
    script = runner.folder / "come.py"
    script.write_text(
        "import sys, time\n"
        "from frida_rtetrack.target.arrival.standin import StandIn\n"
        "StandIn.arrive(int(sys.argv[1]))\n"
        "print('there', flush=True)\n"
        "time.sleep(100)\n"
    )
    host = runner.python(script, program.pid)
    host.wait_for("^there$")
    assert len(program.traces().threads) == len(usual.threads) + 1
    host.send_signal(signal.SIGKILL)
    host.wait()
    eventually(lambda: program.traces() == usual, seconds=30)
    program.assert_well()


def test_an_agent_that_could_not_be_taken_out_safely_stays_at_rest_and_is_told(runner: Runner) -> None:
    program = runner.start_ready("waiter", env={"RTETRACK_SLOW_S": "12"})
    observer = Accusations()
    with Host.attach(program.pid, Options(), observer):
        program.ask(f"load {runner.program('slow.so')}", "^loading$")
        time.sleep(0.5)
    assert len(observer.stayed) == 1 and observer.said == []
    program.ask("say on", "^said on$")
    assert foreign_mappings(program.pid)
    program.wait_for("^loaded$")
    with Host.attach(program.pid, Options(), observer) as host:
        program.ask("leak 4321", "^leaked")
        eventually(lambda: host.tracking.live_bytes > 4321)
    assert len(observer.stayed) == 1 and observer.said == []
    assert program.finish() == 0


def test_a_program_whose_main_thread_has_ended_is_refused(runner: Runner) -> None:
    program = runner.start_ready("headless")
    eventually(lambda: process.state(program.pid) == "Z")
    with pytest.raises(ArrivalRefused, match="main thread of process"):
        Host.attach(program.pid)
    assert program.alive


def test_a_stopped_program_is_refused_and_stays_stopped(runner: Runner) -> None:
    program = Restless(runner, "malloc")
    program.process.send_signal(signal.SIGSTOP)
    eventually(lambda: process.state(program.pid) == "T")
    with pytest.raises(ArrivalRefused, match="stopped"):
        Host.attach(program.pid)
    assert process.state(program.pid) == "T"
    program.process.send_signal(signal.SIGCONT)
    program.assert_well()


def test_a_signal_handler_that_the_program_has_for_faults_still_gets_them(runner: Runner) -> None:
    program = runner.start_ready("headless", "faults")
    with Host.attach(program.pid):
        program.ask("fault", "^handled$")
    program.ask("fault", "^handled$")
    assert program.alive
