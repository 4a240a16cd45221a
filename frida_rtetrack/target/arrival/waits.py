"""What a thread waits in, seen from outside, and how it goes on waiting when a stop has cut that short."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from dataclasses import dataclass

from frida_rtetrack.target.arrival.ptrace import NO_SYSTEM_CALL, Registers, TracedThread
from frida_rtetrack.target.descriptors import closing_socket

FUTEX = 202

WAITS = frozenset(
    {
        *(35, 230),  # nanosleep, clock_nanosleep
        *(7, 271, 23, 270, 232, 281, 441),  # poll, ppoll, select, pselect6, epoll_wait, epoll_pwait, epoll_pwait2
        *(0, 19, 45, 47, 299, 43, 288),  # read, readv, recvfrom, recvmsg, recvmmsg, accept, accept4
        *(61, 247),  # wait4, waitid
        *(34, 130, 128),  # pause, rt_sigsuspend, rt_sigtimedwait
        *(65, 220, 70, 243),  # semop, semtimedop, msgrcv, mq_timedreceive
        219,  # restart_syscall: nanosleep, poll or futex with a time limit, which no lock of the C library's has
        FUTEX,
    }
)
"""System calls that a thread may wait in."""

EINTR_WAITS = {
    232: "r10",
    281: "r10",
    441: "r10",
    128: "rdx",
    220: "r10",
    65: "",
    45: "",
    47: "",
    43: "",
    288: "",
    0: "",
}
"""Of those, the ones that a mere stop can end with EINTR (signal(7)), with the register that has their time limit."""

_ON_SOCKETS = frozenset({0, 19, 45, 47, 43, 288})
"""Of those, the ones that wait for a socket as long as SO_RCVTIMEO says: the descriptor is their first argument."""
_SYS_PIDFD_GETFD = 438
_TIME = struct.Struct("ll")  # struct timeval

_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
_IN_MILLISECONDS = (232, 281)  # epoll_wait, epoll_pwait: an int, -1 for none; the others point to their limit
_EINTR = -4


@dataclass(frozen=True)
class Wait:
    """What /proc tells of a thread without touching it."""

    state: str
    """As in `ps`: R, S, D, T, t, Z, X."""
    call: int | None
    """The system call that it is in."""
    arguments: tuple[int, ...]
    switches: int
    """How often it has waited so far."""

    @classmethod
    def of(cls, pid: int, tid: int) -> Wait | None:
        """Of a thread; None where it is gone."""
        try:
            status = _status(pid, tid)
            with open(f"/proc/{pid}/task/{tid}/syscall") as file:
                words = file.read().split()
        except OSError:
            return None
        numbers = tuple(int(word, 16) for word in words[1:]) if len(words) > 2 else ()
        call = int(words[0]) if numbers and words[0].lstrip("-").isdecimal() else None
        return cls(status["State"][:1], call, numbers, int(status["voluntary_ctxt_switches"]))

    @property
    def limit_would_start_anew(self) -> bool:
        """Whether it is a wait with a time limit that the kernel does not continue after a stop, but begins again."""
        register = "" if self.call is None else EINTR_WAITS.get(self.call, "")
        if not register:
            return False
        limit = self.arguments[_ARGUMENTS.index(register)]
        return limit & 0xFFFF_FFFF != 0xFFFF_FFFF if self.call in _IN_MILLISECONDS else limit != 0


def has_socket_limit(pid: int, wait: Wait) -> bool:
    """Whether it is a wait for a socket that has a time limit of its own (SO_RCVTIMEO). The kernel begins that again after a
    stop; and in the last tick of its timer (4 ms) a stop even ends it, with EAGAIN.
    """
    if wait.call not in _ON_SOCKETS:
        return False
    try:
        with closing_socket(_copy_of_descriptor(pid, wait.arguments[0])) as there:
            if there is None:
                return False
            return there.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIME.size) != bytes(_TIME.size)
    except OSError:
        return False  # the process has ended


def _copy_of_descriptor(pid: int, descriptor: int) -> int:
    """pidfd_getfd(2): a descriptor of ours for what `descriptor` is in the process. Raises OSError."""
    process = os.pidfd_open(pid)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        copy: int = libc.syscall(_SYS_PIDFD_GETFD, process, ctypes.c_int(descriptor & 0xFFFF_FFFF), 0)
        if copy < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return copy
    finally:
        os.close(process)


def begin_again(pid: int, tid: int, thread: TracedThread, registers: Registers) -> Registers:
    """The registers to go on with: a wait that ended with EINTR for our stop alone is made to begin again."""
    if registers.signed("rax") != _EINTR or registers.signed("orig_rax") not in EINTR_WAITS:
        return registers
    status = _status(pid, tid)
    if (int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)) & ~thread.signal_mask():
        return registers  # there is a signal to be handled: that ended it
    again = registers.but(rip=registers["rip"] - 2, rax=registers["orig_rax"], orig_rax=NO_SYSTEM_CALL)
    thread.set_registers(again)
    return again


def tracer_of(pid: int, tid: int) -> int:
    """The pid of the process that traces the thread, 0 for none. Raises OSError."""
    return int(_status(pid, tid)["TracerPid"])


def _status(pid: int, tid: int) -> dict[str, str]:
    with open(f"/proc/{pid}/task/{tid}/status") as file:
        return dict(line.split(":\t", 1) for line in file if ":\t" in line)
