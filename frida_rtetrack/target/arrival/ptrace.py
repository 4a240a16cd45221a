"""ptrace(2) on one thread, and what its stops and registers mean. All calls must come from one thread of ours.

A thread that we have seized runs on by itself when we die (no PTRACE_O_EXITKILL): whoever uses this leaves it, at every
instant, in a state that it can go on from.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_CONT, _DETACH, _SYSCALL = 7, 17, 24
_GETSIGINFO, _SETSIGINFO = 0x4202, 0x4203
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT = 0x4204, 0x4205, 0x4206, 0x4207
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_O_TRACESYSGOOD = 1
_EVENT_STOP = 128
_WALL = 0x4000_0000
_NT_PRSTATUS, _NT_X86_XSTATE = 1, 0x202
_XSTATE_MAX_BYTES = 0x4000
_SIGINFO_BYTES = 128
_SYS_TGKILL = 234

# struct user_regs_struct (sys/user.h)
REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
_LAYOUT = struct.Struct(f"<{len(REGISTERS)}Q")
NO_SYSTEM_CALL = (1 << 64) - 1
"""orig_rax of a thread that is in none: the kernel then restarts nothing."""


class ThreadGone(Exception):
    """The thread has ended."""


class NotStopped(Exception):
    """The thread did not stop in time (it is in vfork, or in an uninterruptible sleep)."""


class Stopped(Exception):
    """The whole process was stopped (SIGSTOP) meanwhile."""


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@dataclass
class Registers:
    """General registers by name, 64-bit unsigned."""

    values: dict[str, int] = field(default_factory=dict)

    @classmethod
    def unpack(cls, raw: bytes) -> Registers:
        """From struct user_regs_struct."""
        return cls(dict(zip(REGISTERS, _LAYOUT.unpack(raw), strict=True)))

    def pack(self) -> bytes:
        """As struct user_regs_struct."""
        return _LAYOUT.pack(*(self.values[name] & (1 << 64) - 1 for name in REGISTERS))

    def __getitem__(self, name: str) -> int:
        return self.values[name]

    def signed(self, name: str) -> int:
        """The register as a signed number."""
        value = self.values[name]
        return value - (1 << 64) if value >> 63 else value

    def but(self, **changes: int) -> Registers:
        """A copy with some registers set otherwise."""
        return Registers({**self.values, **changes})


class TracedThread:
    """A thread that we trace from `seize` until `detach`, or until our own end."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        self._libc.ptrace.restype = ctypes.c_long
        self._kept: list[tuple[int, bytes]] = []
        self.keeps_signals = False
        """Whether its signals wait for `raise_kept`."""
        self._xstate = ctypes.create_string_buffer(_XSTATE_MAX_BYTES)

    def _do(self, request: int, address: int | None = None, data: object = None) -> None:
        if self._libc.ptrace(request, self.tid, address, data) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def seize(self) -> None:
        """Begins to trace it; it runs on."""
        self._do(_SEIZE, None, _O_TRACESYSGOOD)

    def detach(self, signal_number: int = 0) -> None:
        """Lets the stopped thread go, with the signal that it was stopped for."""
        self._do(_DETACH, None, signal_number)

    def interrupt(self, seconds: float) -> None:
        """Stops it; signals that come first are delivered, or kept. Raises NotStopped, Stopped, ThreadGone."""
        self._do(_INTERRUPT)
        deadline = time.monotonic() + seconds
        while True:
            status = self._wait(deadline)
            if status >> 16 == _EVENT_STOP:
                if os.WSTOPSIG(status) == signal.SIGTRAP:
                    return
                if not self.keeps_signals:
                    self._do(_DETACH)
                    raise Stopped
            self._go_on(_CONT, status)

    def _go_on(self, request: int, status: int) -> None:
        """Resumes it from a stop that was not waited for. A signal is delivered, or kept for `deliver`."""
        number = 0 if status >> 16 else os.WSTOPSIG(status) & 0x7F
        if number and self.keeps_signals:
            info = ctypes.create_string_buffer(_SIGINFO_BYTES)
            self._do(_GETSIGINFO, None, ctypes.addressof(info))
            self._kept.append((number, info.raw))
            number = 0
        self._do(request, None, number)

    def _wait(self, deadline: float) -> int:
        pause = 0.00002
        while (status := self._poll()) is None:
            if time.monotonic() > deadline:
                raise NotStopped
            time.sleep(pause)
            pause = min(pause * 1.5, 0.001)
        return status

    def _poll(self) -> int | None:
        pid, status = os.waitpid(self.tid, os.WNOHANG | _WALL)
        if not pid:
            return None
        if not os.WIFSTOPPED(status):
            raise ThreadGone
        return status

    def run_system_call(self, seconds: float) -> None:
        """Lets it run from a `syscall` instruction right at its rip until that has been done; it is stopped then.

        Not by single steps: whoever dies while it steps a thread leaves it with a SIGTRAP.
        """
        deadline = time.monotonic() + seconds
        for _ in range(2):  # at its entry, and at its end
            self._do(_SYSCALL)
            while os.WSTOPSIG(status := self._wait(deadline)) != signal.SIGTRAP | 0x80:
                self._go_on(_SYSCALL, status)

    def run_until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Lets the stopped thread run until `done`; it runs then. False: not in time."""
        self._do(_CONT)
        deadline = time.monotonic() + seconds
        while not done():
            if (status := self._poll()) is not None:
                self._go_on(_CONT, status)
            if time.monotonic() > deadline:
                return False
            time.sleep(0.00002)
        return True

    def raise_kept(self, pid: int, seconds: float) -> int:
        """Sends the stopped thread the signals that were kept, and stops it at the first: to be given to `detach`.

        It comes with what was known of it (siginfo); those behind it without. Returns 0 if there is none, or if it blocks
        them now: what came in sigsuspend, and the like, waits until that is begun again.
        """
        kept, self._kept = self._kept, []
        if not kept:
            return 0
        for number, _ in kept:
            self._libc.syscall(_SYS_TGKILL, pid, self.tid, number)
        self.keeps_signals = False
        blocked = self.signal_mask()
        kept = [(number, info) for number, info in kept if not blocked >> number - 1 & 1]
        if not kept:
            return 0
        number, info = kept[0]
        self._do(_CONT)
        deadline = time.monotonic() + seconds
        while (status := self._wait(deadline)) >> 16:
            self._do(_CONT)
        if os.WSTOPSIG(status) == number:
            buffer = ctypes.create_string_buffer(info, len(info))
            self._do(_SETSIGINFO, None, ctypes.addressof(buffer))
        return os.WSTOPSIG(status)

    def registers(self) -> Registers:
        """General registers of the stopped thread."""
        buffer = ctypes.create_string_buffer(_LAYOUT.size)
        vector = _Iovec(ctypes.addressof(buffer), len(buffer))
        self._do(_GETREGSET, _NT_PRSTATUS, ctypes.addressof(vector))
        return Registers.unpack(buffer.raw)

    def set_registers(self, registers: Registers) -> None:
        """Sets the general registers."""
        raw = registers.pack()
        buffer = ctypes.create_string_buffer(raw, len(raw))
        vector = _Iovec(ctypes.addressof(buffer), len(buffer))
        self._do(_SETREGSET, _NT_PRSTATUS, ctypes.addressof(vector))

    def extended_state(self) -> bytes:
        """x87, SSE, AVX and whatever else the machine has, as XSAVE's standard format."""
        vector = _Iovec(ctypes.addressof(self._xstate), len(self._xstate))
        self._do(_GETREGSET, _NT_X86_XSTATE, ctypes.addressof(vector))
        return self._xstate.raw[: vector.length]

    def set_extended_state(self, state: bytes) -> None:
        """Sets what `extended_state` returned."""
        buffer = ctypes.create_string_buffer(state, len(state))
        vector = _Iovec(ctypes.addressof(buffer), len(buffer))
        self._do(_SETREGSET, _NT_X86_XSTATE, ctypes.addressof(vector))

    def signal_mask(self) -> int:
        """The signals that it blocks, bit N-1 for signal N: those that it goes on with, in sigsuspend and the like."""
        mask = ctypes.c_uint64()
        self._do(_GETSIGMASK, 8, ctypes.addressof(mask))
        return mask.value

    def set_signal_mask(self, mask: int) -> None:
        """Sets the blocked signals."""
        value = ctypes.c_uint64(mask)
        self._do(_SETSIGMASK, 8, ctypes.addressof(value))
