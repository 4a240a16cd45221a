"""A program that is stopped (SIGSTOP) while it is come into: it stays stopped, goes on when it is let, and ends as it would."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from restless import Restless
from tracked import Accusations, Runner, eventually

from frida_rtetrack import Host, Options
from frida_rtetrack.errors import RtetrackError
from frida_rtetrack.target.target import Target

REFUSED_S = 15.0
"""The longest that Frida waits for a program that does not answer, and what has come in for its end."""
END_S = 5.0


def stopped_or_not(pid: int) -> str:
    """T where a thread is stopped: of SIGSTOP all are, but one that has just been borrowed goes on for some seconds."""
    states = [
        Path(f"/proc/{pid}/task/{tid}/stat").read_text().rpartition(") ")[2][0]
        for tid in os.listdir(f"/proc/{pid}/task")
    ]
    return "T" if "T" in states else "".join(states)


class Stop:
    """SIGSTOP to a program, `after_ms` from `begin` on, and SIGCONT `for_s` later."""

    def __init__(self, pid: int, after_ms: float, for_s: float) -> None:
        self._pid, self._after_ms, self._for_s = pid, after_ms, for_s
        self.state = "never stopped"
        """Right before SIGCONT."""
        self._thread = threading.Thread(target=self._run)

    def begin(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def _run(self) -> None:
        time.sleep(self._after_ms / 1000)
        os.kill(self._pid, signal.SIGSTOP)
        time.sleep(self._for_s)
        self.state = stopped_or_not(self._pid)
        os.kill(self._pid, signal.SIGCONT)

    def over(self) -> str:
        """Waits for the end of it; the state that the program was in then."""
        self._thread.join()
        return self.state


def attach_and_leave(pid: int) -> str:
    """Why that was refused, empty where it was not."""
    begun = time.monotonic()
    observer = Accusations()
    refused = ""
    try:
        with Host.attach(pid, Options(dump_on_bad_free=False), observer):
            pass
    except RtetrackError as error:
        refused = str(error)
    assert observer.said == []
    assert time.monotonic() - begun < REFUSED_S, refused
    return refused


def comes_and_goes_unharmed(program: Restless, stop: Stop) -> str:
    """Attaches to the program while it is stopped, sees that nothing came of it, and ends it. As attach_and_leave."""
    refused = attach_and_leave(program.pid)
    assert stop.over() == "T", refused
    program.assert_well()
    eventually(lambda: "rtetrack-session" not in open(f"/proc/{program.pid}/maps").read(), seconds=20)
    program.process.send_signal(signal.SIGTERM)
    assert program.process.wait(seconds=END_S) == -signal.SIGTERM
    assert not refused or "stopped" in refused
    return refused


@pytest.mark.timeout(300)
@pytest.mark.parametrize("for_s", [0.1, 3.0])
def test_a_program_that_is_stopped_at_any_moment_of_coming_stays_so_and_goes_on(runner: Runner, for_s: float) -> None:
    for moment_ms in range(0, 400, 40 if for_s < 1 else 100):
        program = Restless(runner, "compute", "threads", "malloc")
        stop = Stop(program.pid, moment_ms, for_s)
        stop.begin()
        comes_and_goes_unharmed(program, stop)


@pytest.fixture
def at_fridas_coming(monkeypatch: pytest.MonkeyPatch) -> list[Stop]:
    """What is to begin when Frida is told to come."""
    stops: list[Stop] = []
    come = Target._attach

    def noted(*arguments: object) -> object:
        stops[-1].begin()
        return come(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Target, "_attach", staticmethod(noted))
    return stops


@pytest.mark.timeout(300)
@pytest.mark.parametrize("for_s", [0.1, 8.0])
def test_a_program_that_is_stopped_in_the_moment_of_fridas_coming(
    runner: Runner, for_s: float, at_fridas_coming: list[Stop]
) -> None:
    refused = []
    for moment_ms in (0, 2, 4, 8, 15, 30) if for_s < 5 else (0, 4, 30):
        program = Restless(runner, "compute", "threads")
        stop = Stop(program.pid, moment_ms, for_s)
        at_fridas_coming.append(stop)
        refused.append(comes_and_goes_unharmed(program, stop))
    if for_s > 5:
        assert any(refused)
