"""A thread that is borrowed while it waits for a signal, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from frida_rtetrack.target.arrival import lending
from frida_rtetrack.target.arrival.helper import Arrival
from frida_rtetrack.target.arrival.ptrace import TracedThread
from frida_rtetrack.target.arrival.region import GONE
from frida_rtetrack.target.arrival.waits import begin_again

RT_SIGSUSPEND = "130"
SUSPENDED = """
import ctypes, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
print(ctypes.CDLL(None).sigsuspend((ctypes.c_ulong * 16)()), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def suspended() -> Iterator[subprocess.Popen[str]]:
    """It lets SIGALRM come in sigsuspend only."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    while not Path(f"/proc/{process.pid}/syscall").read_text().startswith(RT_SIGSUSPEND + " "):
        time.sleep(0.01)
    yield process
    process.kill()
    process.wait()


def test_a_signal_that_comes_in_sigsuspend_while_its_thread_is_stopped_is_not_late(
    suspended: subprocess.Popen[str],
) -> None:
    arrival = Arrival(suspended.pid)
    thread = TracedThread(suspended.pid)
    begun = time.monotonic()
    thread.seize()
    thread.interrupt(2.0)
    back = begin_again(suspended.pid, suspended.pid, thread, thread.registers())
    os.kill(suspended.pid, signal.SIGALRM)
    region = lending.lend(thread, arrival._memory, arrival._addresses, arrival._functions, back)
    assert suspended.stdout is not None
    assert suspended.stdout.readline() == "-1\n"
    assert time.monotonic() - begun < lending.PATIENCE_S
    region.command(GONE)
    suspended.communicate("\n", timeout=30)
    assert suspended.returncode == 0
