"""Who stays for a second when this process is killed: for Frida's connections only, and as nobody's child."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from frida_rtetrack.target.arrival import linger

HOST = """
import os, signal, socket, subprocess, sys
from frida_rtetrack.target.arrival import linger
for _ in range(2):
    linger.start_once()
made = [socket.socket(socket.AF_UNIX) for _ in sys.argv[1:]]
accepted = []
for each, name in zip(made, sys.argv[1:]):
    each.bind(name.replace("@", chr(0)))
    each.listen()
    print(name, flush=True)
    accepted.append(each.accept()[0])
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("nobody's child", flush=True)
print(linger._started[os.getpid()], flush=True)
sys.stdin.readline()
"""
SECONDS = 1.0


class Lingering:
    """A host of its own that has accepted a connection by each of `names`."""

    def __init__(self, *names: str) -> None:
        command = [sys.executable, "-c", HOST, *names]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.connections = []
        for name in names:
            assert self.process.stdout.readline() == f"{name}\n"
            self.connections.append(socket.socket(socket.AF_UNIX))
            self.connections[-1].connect(name.replace("@", "\0"))
            self.connections[-1].settimeout(10)
        assert self.process.stdout.readline() == "nobody's child\n"
        self.other = int(self.process.stdout.readline())

    def over_after(self, index: int, since: float) -> float:
        """Seconds from `since` to the end of a connection."""
        with contextlib.suppress(ConnectionResetError):  # of who has left something unread
            assert self.connections[index].recv(1) == b""
        return time.monotonic() - since

    def wait_until_the_other_has_gone(self, seconds: float) -> None:
        """A process that ends has closed its files a moment before it is seen to have ended."""
        begun = time.monotonic()
        while _is_there(self.other):
            assert time.monotonic() - begun < seconds
            time.sleep(0.01)


@pytest.fixture
def names(tmp_path: Path) -> tuple[str, str]:
    return f"@/frida-{os.getpid()}", str(tmp_path / "telemetry")


def test_the_machine_code_is_that_of_the_source(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("objcopy") is None:
        pytest.skip("no assembler")
    source, output, binary = Path(linger.__file__).with_suffix(".S"), tmp_path / "linger.o", tmp_path / "linger.bin"
    subprocess.run(["gcc", "-c", source, "-o", output], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", output, binary], check=True)
    assert binary.read_bytes() == linger.CODE


def test_fridas_connection_outlives_a_host_that_is_killed_and_no_other_does(names: tuple[str, str]) -> None:
    host = Lingering(*names)
    begun = time.monotonic()
    host.process.kill()
    host.process.wait()
    assert host.over_after(1, begun) < SECONDS
    host.connections[0].send(b"an answer")
    assert host.over_after(0, begun) > SECONDS - 0.1
    with pytest.raises(ConnectionRefusedError):
        socket.socket(socket.AF_UNIX).connect(names[0].replace("@", "\0"))
    host.wait_until_the_other_has_gone(SECONDS)


def test_it_goes_when_the_last_agent_has_gone(names: tuple[str, str]) -> None:
    host = Lingering(*names)
    host.process.kill()
    host.process.wait()
    host.connections[0].close()
    host.wait_until_the_other_has_gone(SECONDS - 0.2)


def test_a_host_that_ends_by_itself_takes_it_along(names: tuple[str, str]) -> None:
    host = Lingering(*names)
    begun = time.monotonic()
    host.process.communicate("\n")
    assert host.process.returncode == 0
    assert not _is_there(host.other)
    assert host.over_after(0, begun) < SECONDS


def test_it_holds_no_memory_and_no_signal_sent_to_the_group_ends_it(names: tuple[str, str]) -> None:
    host = Lingering(*names)
    deadline = time.monotonic() + 10
    while _status(host.other, "Name") != "rtetrack-linger" or int(_status(host.other, "VmSize").split()[0]) > 64:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert os.getpgid(host.other) != os.getpgid(host.process.pid)
    host.process.kill()
    host.process.wait()


def _status(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(key))


def _is_there(pid: int) -> bool:
    """Alive: who is adopted may be a zombie for a moment."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
