"""Starts a program so that it stops before its first instruction with Frida in it, and keeps its exit status.

Frida reaps what it traces, in a race with whoever else waits for the exit status in the same process. So the parent of
the program is a keeper, a small Python process that only waits for it and passes the status on through a pipe. The
keeper's child replaces itself with the program, which is held at its entry point (execgate), where nothing of it runs
yet that Frida could disturb. Where that is not known Frida's child gating does it, whose exit monitor makes forked
children spin.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import frida

from frida_rtetrack.errors import AgentFailed, NoSuchProgram, TargetEnded
from frida_rtetrack.target import execgate, process
from frida_rtetrack.target.agentlink import SESSION_OPTIONS
from frida_rtetrack.target.arrival import linger

LAUNCH_SECONDS = 30.0
_WALL = 0x40000000  # linux/wait.h: also what is traced and no child of ours
REAP_SECONDS = 5.0
"""For the keeper to hear that the program has ended, once it has."""

_GONE = (frida.ProcessNotFoundError, frida.InvalidArgumentError, frida.InvalidOperationError, frida.NotSupportedError)
"""What Frida calls it that a program it holds has ended: which one depends on how far it came."""

_held: set[int] = set()
"""Pids of programs that were started and not let run."""


def end_held() -> None:
    """Ends what was started and not let run, without waiting: it would begin, untracked, with this process's end."""
    for pid in tuple(_held):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# The keeper and, forked from it, what becomes the program. Signals that Python ignores are put back; the environment is
# as it was given. Arguments: the descriptors (ready, go, status), 1 to take standard input as the controlling terminal,
# 1 to become the parent of processes that the program leaves behind (prctl PR_SET_CHILD_SUBREAPER, 36), the path, the
# program's argument list.
_KEEPER = """
import os, signal, sys
ready, go, status = map(int, sys.argv[1:4])
for name in ("SIGPIPE", "SIGXFSZ", "SIGINT"):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
with open("/proc/self/environ", "rb") as file:
    environment = dict(entry.split(b"=", 1) for entry in file.read().split(b"\\0") if b"=" in entry)
keeps_orphans = sys.argv[5] == "1"
if keeps_orphans:
    import ctypes
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
program = os.fork()
if program == 0:
    os.close(status)
    os.setsid()
    if sys.argv[4] == "1":
        import fcntl, termios
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.set_inheritable(ready, False)
    os.set_inheritable(go, False)
    os.write(ready, b"%d\\n" % os.getpid())
    if os.read(go, 1) != b"g":
        os._exit(127)
    try:
        os.execve(sys.argv[6], sys.argv[7:], environment)
    except OSError as error:
        os.write(ready, os.strerror(error.errno).encode())
        os._exit(127)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
null = os.open(os.devnull, os.O_RDWR)
for descriptor in (0, 1, 2, ready, go):
    os.dup2(null, descriptor)
while True:
    try:
        ended, raw = os.waitpid(-1 if keeps_orphans else program, 0)
    except ChildProcessError:
        break
    if ended == program:
        try:
            os.write(status, b"%d\\n" % raw)
        except OSError:
            pass
        if not keeps_orphans:
            break
"""


class GatedProgram:
    """A program that waits, with Frida attached and nothing executed yet, until `resume` is called."""

    def __init__(
        self,
        pid: int,
        session: frida.Session,
        held: execgate.Held | None,
        keeper: subprocess.Popen[bytes],
        status: int,
    ) -> None:
        """`held`: at its entry point, None where Frida's gating holds it."""
        self.pid = pid
        self.session = session
        self._entry = held
        self.resumed = False
        self._keeper = keeper
        self._status_fd = status
        self._wait_status: int | None = None

    def resume(self) -> None:
        """Lets the program run. Raises TargetEnded."""
        if process.is_ending(self.pid):  # not asked afterwards: some programs end at once
            raise _ended()
        try:
            if self._entry is not None:
                execgate.release(self._entry)
            else:
                frida.get_local_device().resume(self.pid)
        except (OSError, *_GONE):
            raise _ended() from None
        _held.discard(self.pid)
        self.resumed = True

    def kill(self) -> None:
        """Ends a program that cannot be tracked."""
        _end(self.pid)
        if self._entry is not None and not self.resumed:
            execgate.forget(self._entry)

    def wait_status(self) -> int | None:
        """The status of a program that has ended, as waitpid gives it; None where the keeper does not learn of it."""
        if self._wait_status is None and self._status_fd >= 0:
            _take_from_tracer(self.pid)
            data = b""
            while not data.endswith(b"\n") and select.select([self._status_fd], [], [], REAP_SECONDS)[0]:
                more = os.read(self._status_fd, 64)
                if not more:
                    break
                data += more
            self._wait_status = int(data) if data.endswith(b"\n") else None
            os.close(self._status_fd)
            self._status_fd = -1
        return self._wait_status

    def orphans(self) -> list[int]:
        """Pids of processes that the program's own children left behind, where the keeper was told to be their parent."""
        keeper = self._keeper.pid
        try:
            with open(f"/proc/{keeper}/task/{keeper}/children") as file:
                return [int(pid) for pid in file.read().split() if int(pid) != self.pid]
        except OSError:
            return []

    def close(self) -> None:
        """Lets the keeper go, once the program has ended; what was left behind becomes init's."""
        self._keeper.kill()
        self._keeper.wait()


def launch(path: str, argv: Sequence[str], *, terminal: int | None = None, keep_orphans: bool = False) -> GatedProgram:
    """Starts `path` with `argv` (argv[0] included) in a session of its own and stops it before its first instruction.

    `terminal` is the descriptor of a terminal that becomes the program's standard streams and controlling terminal;
    without it the program has the caller's streams. `keep_orphans`: see `GatedProgram.orphans`. Raises NoSuchProgram or AgentFailed.
    """
    ready, ready_write = os.pipe()
    go_read, go = os.pipe()
    status, status_write = os.pipe()
    keeper = subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", "-c", _KEEPER, str(ready_write), str(go_read), str(status_write)),
            *("1" if terminal is not None else "0", "1" if keep_orphans else "0", path, *argv),
        ],
        pass_fds=(ready_write, go_read, status_write),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    for descriptor in (ready_write, go_read, status_write):
        os.close(descriptor)
    pid = 0
    try:
        pid = int(os.read(ready, 32) or b"0")
        if not pid:
            raise AgentFailed(f"The launcher of {path} did not start.")
        _held.add(pid)
        held = None
        if execgate.AVAILABLE:
            held = _hold_at_entry(pid, path, ready, go)
        else:
            _hold_by_gating(pid, path, ready, go)
        linger.start_once()
        try:
            session = frida.get_local_device().attach(pid, **SESSION_OPTIONS)
        except BaseException:
            _end(pid)
            if held is not None:
                execgate.forget(held)
            raise
        return GatedProgram(pid, session, held, keeper, status)
    except BaseException:
        if pid:
            _end(pid)
        keeper.kill()
        keeper.wait()
        os.close(status)
        raise
    finally:
        os.close(ready)
        os.close(go)


def _hold_at_entry(pid: int, path: str, ready: int, go: int) -> execgate.Held:
    try:
        return execgate.hold(pid, lambda: _write(go, b"g"))
    except execgate.NotHeld as error:
        os.set_blocking(ready, False)
        try:
            failure = os.read(ready, 4096)
        except BlockingIOError:
            failure = b""
        if failure:
            raise _not_executed(path, failure) from None
        raise AgentFailed(f"{path} could not be held at its beginning: it {error}.") from None


def _write(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)


def _hold_by_gating(pid: int, path: str, ready: int, go: int) -> None:
    device = frida.get_local_device()
    arrived = threading.Event()

    def on_child_added(found: Any) -> None:
        if found.pid == pid:
            arrived.set()

    device.on("child-added", on_child_added)
    try:
        gate = device.attach(pid, **SESSION_OPTIONS)
        gate.enable_child_gating()
        os.write(go, b"g")
        _wait_for_exec(arrived, ready, path)
    finally:
        device.off("child-added", on_child_added)


def _not_executed(path: str, failure: bytes) -> NoSuchProgram:
    return NoSuchProgram(f"{path} cannot be executed: {failure.decode()}.", "Give a program that runs on its own.")


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
        raise _not_executed(path, bytes(failure))


def _take_from_tracer(pid: int) -> bool:
    """Has the kernel tell the keeper of the end of `pid`, which it does when its tracer has taken note of it.

    Frida traces from this process what it holds, and takes no note of an end before the program was resumed. False:
    `pid` has not ended yet.
    """
    try:
        return os.waitpid(pid, _WALL | os.WNOHANG)[0] == pid
    except ChildProcessError:  # not traced, or Frida was faster
        return True


def _ended() -> TargetEnded:
    return TargetEnded("The program ended before it was let run.")


def _end(pid: int) -> None:
    _held.discard(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + REAP_SECONDS
    while not _take_from_tracer(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
