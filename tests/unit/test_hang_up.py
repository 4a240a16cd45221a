"""Ending the connection of an agent that was not told to leave: its, and nobody else's."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from frida_rtetrack.target.agentlink import hang_up

_CONNECTED = """
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    print("connected", flush=True)
    sys.exit(0 if connection.recv(1) == b"" else 1)
"""


def connected(listener: socket.socket, path: Path) -> tuple[subprocess.Popen[str], socket.socket]:
    process = subprocess.Popen([sys.executable, "-c", _CONNECTED, path], stdout=subprocess.PIPE, text=True)
    connection, _ = listener.accept()
    assert process.stdout is not None and process.stdout.readline() == "connected\n"
    return process, connection


def test_the_connection_of_one_process_is_ended_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        agent, ended = connected(listener, path)
        other, stays = connected(listener, path)
        hang_up(agent.pid)
        assert agent.wait(10) == 0
        assert ended.recv(1) == b""
        assert other.poll() is None
        stays.send(b"x")
        assert other.wait(10) == 1
        ended.close()
        stays.close()
