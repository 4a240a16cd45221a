"""Ending the connection of an agent that was not told to leave: its, and nobody else's."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from frida_rtetrack.target.agentlink import hang_up

CONNECTED = """
import socket, sys
connections = [socket.socket(socket.AF_UNIX) for name in sys.argv[1:]]
for connection, name in zip(connections, sys.argv[1:]):
    connection.connect(name.replace("@", chr(0)))
print("connected", flush=True)
for connection in connections:
    print("over" if connection.recv(1) == b"" else "goes on", flush=True)
"""


class Listening:
    """What processes connect to, by a name."""

    def __init__(self, name: str) -> None:
        """`name`: with @ in the place of 0 for an abstract one."""
        self.name = name
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(name.replace("@", "\0"))
        self._listener.listen()

    def accept(self) -> socket.socket:
        return self._listener.accept()[0]

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def frida() -> Iterator[Listening]:
    listening = Listening(f"@/frida-{os.getpid()}")
    yield listening
    listening.close()


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Listening]:
    listening = Listening(str(tmp_path / "telemetry"))
    yield listening
    listening.close()


def connected(*to: Listening) -> tuple[subprocess.Popen[str], list[socket.socket]]:
    command = [sys.executable, "-c", CONNECTED, *(listening.name for listening in to)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "connected\n"
    return process, [listening.accept() for listening in to]


def said(process: subprocess.Popen[str]) -> list[str]:
    return process.communicate(timeout=10)[0].splitlines()


def test_the_connection_of_one_agent_is_ended_and_no_other(frida: Listening, telemetry: Listening) -> None:
    agent, (ended, told) = connected(frida, telemetry)
    other, (stays,) = connected(frida)
    before = os.listdir("/proc/self/fd")
    hang_up(agent.pid)
    assert os.listdir("/proc/self/fd") == before
    assert ended.recv(1) == b""
    told.send(b"x")
    assert said(agent) == ["over", "goes on"]
    assert other.poll() is None
    stays.send(b"x")
    assert said(other) == ["goes on"]
    for connection in (ended, told, stays):
        connection.close()


def test_the_socket_pair_of_a_program_that_was_spawned_is_ended_too() -> None:
    ours, its = socket.socketpair()
    hang_up(os.getpid())
    assert its.recv(1) == b""
    ours.close(), its.close()
