"""Holds a process at the entry point of the next program that it executes, so that Frida can join it there.

Run as a process of its own, `python -I -S execgate.py PID`, because a tracer's calls must all come from one thread and
Frida reaps what its own process traces. It seizes PID with ptrace(2), says "seized", waits for the exec, lets the
dynamic loader do its work up to the program's entry point, leaves the thread spinning there on a jump to itself (which
needs no tracer), says "entered" and waits. At the end of its input, so too when the host is killed, it puts back what
belongs there, and the program begins. If the exec does not come, or not to a program that Frida could join, it lets PID
go and says why.

`hold` and `release` are the host's side. x86-64 Linux only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

AVAILABLE = platform.machine() == "x86_64"
EXEC_SECONDS = 2.0
ENTRY_SECONDS = 20.0
"""For the dynamic loader: many libraries on a busy machine."""

_PTRACE_CONT, _PTRACE_GETREGS, _PTRACE_SETREGS, _PTRACE_DETACH = 7, 12, 13, 17
_PTRACE_SEIZE, _PTRACE_INTERRUPT = 0x4206, 0x4207
_PTRACE_O_TRACEEXEC = 0x10
_EVENT_EXEC, _EVENT_STOP = 4, 128
_WALL = 0x4000_0000
_SIGTRAP = 5
_AT_ENTRY = 9
_JUMP_TO_ITSELF = b"\xeb\xfe"
_BREAKPOINT = b"\xcc"
_RIP = 16  # index in struct user_regs_struct (sys/user.h), 27 words
_PT_INTERP = 3


@dataclass(frozen=True, slots=True)
class Held:
    """A process that spins at its program's entry point."""

    pid: int
    gate: subprocess.Popen[str]


class NotHeld(Exception):
    """The process goes on by itself; the message says why."""


def hold(pid: int, on_seized: Callable[[], None]) -> Held:
    """Holds `pid`, which is about to exec once `on_seized` was called. Raises NotHeld."""
    gate = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert gate.stdout is not None
    held = Held(pid, gate)
    try:
        seized = gate.stdout.readline().strip()
        on_seized()
        said = gate.stdout.readline().strip() if seized == "seized" else seized or "the tracer did not start"
    except BaseException:
        forget(held)
        raise
    if said != "entered":
        forget(held)
        raise NotHeld(said or "the tracer failed")
    return held


def release(held: Held) -> None:
    """Lets the process begin its program. Raises OSError where it has ended."""
    held.gate.communicate()
    if held.gate.returncode != 0:
        raise ProcessLookupError(3, "it has ended")


def forget(held: Held) -> None:
    """Ends the gate of a process that is gone, or that goes on by itself."""
    held.gate.communicate()


class _Tracer:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._libc.ptrace.restype = ctypes.c_long

    def do(self, request: int, data: object = None) -> None:
        if self._libc.ptrace(request, self.pid, None, data) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def next_stop(self, seconds: float) -> int:
        """Waits for a stop and returns waitpid's status. Raises TimeoutError, or ProcessLookupError at its end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG | _WALL)
            if pid:
                if not os.WIFSTOPPED(status):
                    raise ProcessLookupError("the process has ended")
                return status
            time.sleep(0.0005)
        raise TimeoutError

    def run_until(self, wanted: Callable[[int], bool], seconds: float) -> None:
        """Lets it run, its signals delivered, until a stop with a status that is `wanted`; it is stopped then."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.next_stop(deadline - time.monotonic())
            if wanted(status):
                return
            self.do(_PTRACE_CONT, 0 if status >> 16 else os.WSTOPSIG(status))

    def stop_and_detach(self) -> None:
        try:
            self.do(_PTRACE_INTERRUPT)
            self.run_until(lambda status: status >> 16 == _EVENT_STOP, 1.0)
            self.do(_PTRACE_DETACH)
        except (OSError, TimeoutError):
            pass  # our end lets go of it in any case


def _entry_point(pid: int) -> int:
    with open(f"/proc/{pid}/auxv", "rb") as file:
        data = file.read()
    words = struct.unpack(f"{len(data) // 8}Q", data)
    entry: int = dict(zip(words[::2], words[1::2], strict=True))[_AT_ENTRY]
    return entry


def _why_not_joined(pid: int) -> str | None:
    """Why Frida cannot join what `pid` executes now; None if it can."""
    with open(f"/proc/{pid}/exe", "rb") as file:
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", header, 18)[0] != 62:
            return "is not for x86-64"
        offset, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        table = file.read(size * count)
    if not any(struct.unpack_from("<I", table, size * i)[0] == _PT_INTERP for i in range(count)):
        return "is fully static"
    return None


def _hold(pid: int) -> tuple[str, Callable[[], None] | None]:
    """Returns what to say, and what to do at the end if it is held."""
    tracer = _Tracer(pid)
    tracer.do(_PTRACE_SEIZE, _PTRACE_O_TRACEEXEC)
    print("seized", flush=True)
    try:
        tracer.run_until(lambda status: status >> 16 == _EVENT_EXEC, EXEC_SECONDS)
    except TimeoutError:
        tracer.stop_and_detach()
        return "did not execute anything", None
    reason = _why_not_joined(pid)
    if reason is not None:
        tracer.do(_PTRACE_DETACH)
        return reason, None
    entry = _entry_point(pid)
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:

        def write(data: bytes) -> None:
            memory.seek(entry)
            memory.write(data)

        memory.seek(entry)
        original = memory.read(len(_JUMP_TO_ITSELF))
        write(_BREAKPOINT)
        tracer.do(_PTRACE_CONT)
        try:
            tracer.run_until(lambda status: not status >> 16 and os.WSTOPSIG(status) == _SIGTRAP, ENTRY_SECONDS)
        except TimeoutError:
            write(original)
            tracer.stop_and_detach()
            return "did not reach its entry point", None
        registers = (ctypes.c_ulonglong * 27)()
        tracer.do(_PTRACE_GETREGS, registers)
        registers[_RIP] = entry
        tracer.do(_PTRACE_SETREGS, registers)
        write(_JUMP_TO_ITSELF)
    tracer.do(_PTRACE_DETACH)
    return "entered", lambda: _put_back(pid, entry, original)


def _put_back(pid: int, entry: int, original: bytes) -> None:
    try:
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(entry)
            memory.write(original)
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):  # the program is in our hands until our input ends
        signal.signal(number, signal.SIG_IGN)
    try:
        said, at_end = _hold(int(sys.argv[1]))
        print(said, flush=True)
        if at_end is not None:
            sys.stdin.read()
            at_end()
    except OSError as error:
        print(error.strerror or error, flush=True)
        sys.exit(1)
