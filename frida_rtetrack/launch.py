"""Starts a program so that it stops before its first instruction with Frida in it, and remains our own child.

Frida's own `spawn` reaps the program itself, in a race with whoever else waits for its exit status (lost four times in
ten). So a small Python child is started instead, Frida watches it with child gating, and the child then replaces itself
with the program: Frida stops it there, and its exit status is only ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import frida

from frida_rtetrack.errors import AgentFailed, NoSuchProgram

LAUNCH_SECONDS = 30.0

# Its own descriptors are closed by exec; signals that Python ignores are put back. Arguments: ready and go descriptors,
# whether to take standard input as the controlling terminal, the path, and the program's argument list.
_LAUNCHER = """
import os, sys
ready, go, terminal = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"
import signal
for name in ("SIGPIPE", "SIGXFSZ"):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.SIG_DFL)
if terminal:
    import fcntl, termios
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.set_inheritable(ready, False)
os.set_inheritable(go, False)
os.write(ready, b"r")
if os.read(go, 1) != b"g":
    os._exit(127)
with open("/proc/self/environ", "rb") as file:  # as it was given: Python itself may have added LC_CTYPE
    environment = dict(entry.split(b"=", 1) for entry in file.read().split(b"\\0") if b"=" in entry)
try:
    os.execve(sys.argv[4], sys.argv[5:], environment)
except OSError as error:
    os.write(ready, os.strerror(error.errno).encode())
    os._exit(127)
"""


class GatedProgram:
    """A program that waits, with Frida attached and nothing executed yet, until `resume` is called."""

    def __init__(self, pid: int, session: frida.Session, child: subprocess.Popen[bytes]) -> None:
        self.pid = pid
        self.session = session
        self._child = child

    def resume(self) -> None:
        """Lets the program run."""
        frida.get_local_device().resume(self.pid)

    def reaped(self, status: int) -> None:
        """Tells the subprocess module that the exit status was taken (Frida forbids it to look for itself)."""
        self._child.returncode = status


def launch(path: str, argv: Sequence[str], *, terminal: int | None = None) -> GatedProgram:
    """Starts `path` with `argv` (argv[0] included) in a session of its own and stops it before its first instruction.

    `terminal` is the descriptor of a terminal that becomes the program's standard streams and controlling terminal;
    without it the program has the caller's streams. Raises NoSuchProgram or AgentFailed.
    """
    device = frida.get_local_device()
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    child = subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", "-c", _LAUNCHER, str(ready_write), str(go_read)),
            *("1" if terminal is not None else "0", path, *argv),
        ],
        pass_fds=(ready_write, go_read),
        start_new_session=True,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(ready_write)
    os.close(go_read)
    arrived = threading.Event()

    def on_child_added(found: Any) -> None:
        if found.pid == child.pid:
            arrived.set()

    device.on("child-added", on_child_added)
    try:
        if os.read(ready_read, 1) != b"r":
            raise AgentFailed(f"The launcher of {path} did not start.")
        gate = device.attach(child.pid)
        gate.enable_child_gating()
        os.write(go_write, b"g")
        _wait_for_exec(arrived, ready_read, path)
        return GatedProgram(child.pid, device.attach(child.pid), child)
    except BaseException:
        _kill(child)
        raise
    finally:
        device.off("child-added", on_child_added)
        os.close(ready_read)
        os.close(go_write)


def _wait_for_exec(arrived: threading.Event, ready: int, path: str) -> None:
    failure = bytearray()

    def read_failure() -> None:
        failure.extend(os.read(ready, 4096))
        if failure:
            arrived.set()

    threading.Thread(target=read_failure, daemon=True).start()
    if not arrived.wait(LAUNCH_SECONDS):
        raise AgentFailed(f"Frida did not report the start of {path} within {LAUNCH_SECONDS:.0f} seconds.")
    if failure:
        raise NoSuchProgram(f"{path} cannot be executed: {failure.decode()}.", "Give a program that runs on its own.")


def _kill(child: subprocess.Popen[bytes]) -> None:
    try:
        os.kill(child.pid, 9)
        os.waitid(os.P_PID, child.pid, os.WEXITED)
    except (ProcessLookupError, ChildProcessError):
        pass
    child.returncode = -9
