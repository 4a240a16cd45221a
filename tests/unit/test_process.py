"""What /proc says of a process."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from frida_rtetrack.target import process


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"]) as started:
        yield started
        started.kill()


def test_a_process_is_ending_when_it_is_dead_or_was_told_to_die(child: subprocess.Popen[bytes]) -> None:
    assert not process.is_ending(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert not process.is_ending(child.pid)
    child.kill()
    assert process.is_ending(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    assert process.is_ending(child.pid)
    child.wait()
    assert process.is_ending(child.pid)


def test_what_ends_has_executed_no_other_program(child: subprocess.Popen[bytes]) -> None:
    assert process.lives_without_session(child.pid)
    child.kill()
    assert not process.lives_without_session(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # as one that has given its memory back and is there yet
    assert not process.lives_without_session(child.pid)


def test_a_session_that_goes_while_it_is_looked_at_is_no_sign_of_a_host_that_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, beats = iter([True, False]), iter([b"earlier.", b""])
    monkeypatch.setattr(process, "maps_session", lambda pid: next(there))
    monkeypatch.setattr(process, "agents", lambda pid: frozenset({"1000-2000"}))
    monkeypatch.setattr(process, "_heartbeat", lambda pid: next(beats))
    assert not process._is_tracked(os.getpid())
