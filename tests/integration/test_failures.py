"""What goes wrong between a program's start and its first instruction: an error at once, and nothing left."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tracked import Runner

from frida_rtetrack import Host
from frida_rtetrack.errors import NoDpdk, NoSuchProcess, TargetEnded
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
