"""What goes wrong between a program's start and its first instruction: an error at once, and nothing left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tracked import Runner, eventually, foreign_mappings

from frida_rtetrack import Host
from frida_rtetrack.errors import AgentTimeout, NoDpdk, NoSuchProcess, TargetEnded
from frida_rtetrack.target import agentlink, target
from frida_rtetrack.target.launch import launch
from frida_rtetrack.target.target import Target

AT_ONCE_S = 4.0
"""Less than any limit that a wait of the host's has."""


def test_a_program_that_ends_before_it_was_resumed_has_its_status(runner: Runner) -> None:
    gated = launch(runner.program("demo"), ["demo"])
    started = time.monotonic()
    gated.kill()
    status = gated.wait_status()
    gated.close()
    assert status is not None
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert time.monotonic() - started < AT_ONCE_S


@pytest.mark.parametrize("question", ["create_session", "start"])
def test_a_program_that_dies_while_the_agent_begins_ends_the_spawn(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    ask = Target.call

    def killing(target: Target, method: str, *arguments: Any) -> Any:
        if method == question:
            os.kill(target.pid, signal.SIGKILL)
        return ask(target, method, *arguments)

    monkeypatch.setattr(Target, "call", killing)
    started = time.monotonic()
    with pytest.raises(TargetEnded):
        Host.spawn([runner.program("demo")])
    assert time.monotonic() - started < AT_ONCE_S


def test_a_program_that_is_gone_cannot_be_resumed_and_one_that_never_was_does_not_begin(
    runner: Runner, tmp_path: Path
) -> None:
    with Host.spawn([runner.program("demo")], resume=False) as gone:
        gone.kill()
        with pytest.raises(TargetEnded):
            gone.resume()
    left = tmp_path / "left"
    with Host.spawn(["/bin/sh", "-c", f"touch {left}"], resume=False) as never:
        pid = never.pid
    assert not Path(f"/proc/{pid}").exists()
    assert not left.exists()


def test_also_attach_of_what_is_not_there_or_has_no_dpdk_starts_nothing(runner: Runner, tmp_path: Path) -> None:
    left = tmp_path / "left"
    program = ["/bin/sh", "-c", f"touch {left}"]
    started = time.monotonic()
    with pytest.raises(NoSuchProcess):
        Host.spawn(program, also_attach=[2**22 + 1])
    other = runner.start("/bin/sleep", 60)
    with pytest.raises(NoDpdk):
        Host.spawn(program, also_attach=[other.pid])
    assert other.alive
    assert not left.exists()
    assert time.monotonic() - started < 2 * AT_ONCE_S


QUESTIONS = ("Frida's coming", "making the script", "loading it", "making the session", "its start")


def _is_as_before(pid: int, before: dict[str, int]) -> bool:
    return not foreign_mappings(pid) and _has(pid) == before


def _has(pid: int) -> dict[str, int]:
    return {what: len(os.listdir(f"/proc/{pid}/{what}")) for what in ("task", "fd")}


def test_whatever_takes_too_long_while_attaching_is_undone_and_the_program_can_be_attached_to_again(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = runner.start_ready("waiter")
    before = _has(program.pid)
    limited = agentlink.limited
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    for number, question in enumerate(QUESTIONS):
        asked: list[str] = []

        def too_late(call: Any, seconds: float = 20.0, *, number: int = number, asked: Any = asked, **more: Any) -> Any:
            asked.append("")
            if len(asked) != number + 1:
                return limited(call, seconds, **more)

            def slow() -> Any:
                time.sleep(0.3)
                return call()

            return limited(slow, 0.05, **more)

        monkeypatch.setattr(agentlink, "limited", too_late)
        monkeypatch.setattr(target, "limited", too_late)
        with pytest.raises(AgentTimeout):
            Host.attach(program.pid)
        eventually(lambda: _is_as_before(program.pid, before), seconds=20)
        assert program.ask(f"say after {question}", "^said after")
    monkeypatch.undo()
    with Host.attach(program.pid) as host:
        assert host.tracking.live_blocks > 0
    assert program.finish() == 0


def test_a_time_limit_grows_with_what_wants_to_run_and_while_there_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agentlink, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))

    def slow() -> str:
        time.sleep(0.4)
        return "done"

    with pytest.raises(AgentTimeout):
        agentlink.limited(slow, 0.1)
    assert agentlink.limited(slow, 0.1, working=time.monotonic) == "done"
    monkeypatch.setattr(os, "getloadavg", lambda: (10.0 * (os.cpu_count() or 1), 0.0, 0.0))
    assert agentlink.limited(slow, 0.1) == "done"
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    with pytest.raises(AgentTimeout):  # who works without end is not waited for without end
        agentlink.limited(lambda: time.sleep(1.0), 0.02, working=time.monotonic)
