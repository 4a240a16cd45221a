"""What a thread waits in, seen from outside: this process's own."""

from __future__ import annotations

import os
import platform
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from frida_rtetrack.target import registers
from frida_rtetrack.target.arrival.waits import Wait, has_socket_limit

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="system calls are told by their numbers on x86-64"
)


def wait_in(call: Callable[[], object]) -> Wait:
    """How a thread waits that is in `call`."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert thread.native_id is not None
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        wait = Wait.of(os.getpid(), thread.native_id)
        if wait is not None and wait.state == "S" and wait.call in (0, 45):
            return wait
    raise AssertionError("the thread does not wait")


@pytest.mark.parametrize("seconds", [0, 20])
def test_a_socket_may_have_a_time_limit_of_its_own(seconds: int) -> None:
    ours, its = socket.socketpair()
    its.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))
    wait = wait_in(lambda: its.recv(1))
    before = os.listdir("/proc/self/fd")
    assert has_socket_limit(os.getpid(), wait) == (seconds != 0)
    assert os.listdir("/proc/self/fd") == before  # a copy that is kept would keep the program's sockets open
    assert not wait.limit_would_start_anew
    its.send(b"x"), ours.send(b"x")


def test_a_pipe_has_none() -> None:
    reading, writing = os.pipe()
    wait = wait_in(lambda: os.read(reading, 1))
    before = os.listdir("/proc/self/fd")
    assert not has_socket_limit(os.getpid(), wait)
    assert os.listdir("/proc/self/fd") == before
    os.write(writing, b"x")


def test_a_program_that_has_ended_has_none() -> None:
    ours, its = socket.socketpair()
    wait = wait_in(lambda: its.recv(1))
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert not has_socket_limit(child, wait)
    ours.send(b"x")


IMPATIENT = """
import socket, struct, sys, time
ours, its = socket.socketpair(type=socket.SOCK_DGRAM)
its.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 12000))
shortest = 1.0
print("waits", flush=True)
while True:
    begun = time.monotonic()
    try:
        its.recv(1)
    except BlockingIOError:
        pass
    shortest = min(shortest, time.monotonic() - begun)
    print(shortest, flush=True)
"""


def test_a_sockets_time_limit_is_not_cut_short_by_a_look_at_the_registers() -> None:
    with subprocess.Popen([sys.executable, "-c", IMPATIENT], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "waits\n"
        for number in range(300):
            wait = Wait.of(program.pid, program.pid)
            assert wait is not None
            assert registers._look(program.pid, wait, program.pid, None, 0).words
            time.sleep(0.0007 * (number % 23))
        program.kill()
        shortest = float(program.stdout.read().split()[-1])
    assert 0.012 <= shortest < 1
