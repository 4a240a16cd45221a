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
from dataclasses import dataclass, field

_CONT, _DETACH, _SYSCALL = 7, 17, 24
_GETREGSET, _SETREGSET, _SEIZE, _INTERRUPT = 0x4204, 0x4205, 0x4206, 0x4207
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_O_TRACESYSGOOD = 1
_EVENT_STOP = 128
_WALL = 0x4000_0000
_NT_PRSTATUS, _NT_X86_XSTATE = 1, 0x202
_XSTATE_MAX_BYTES = 0x4000

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
        self._xstate = ctypes.create_string_buffer(_XSTATE_MAX_BYTES)

    def _do(self, request: int, address: int | None = None, data: object = None) -> None:
        if self._libc.ptrace(request, self.tid, address, data) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def seize(self) -> None:
        """Begins to trace it; it runs on."""
        self._do(_SEIZE, None, _O_TRACESYSGOOD)

    def detach(self) -> None:
        """Lets the stopped thread go."""
        self._do(_DETACH)

    def interrupt(self, seconds: float) -> None:
        """Stops it; signals that come first are delivered. Raises NotStopped, Stopped, ThreadGone."""
        self._do(_INTERRUPT)
        deadline = time.monotonic() + seconds
        while True:
            status = self._wait(deadline)
            if status >> 16 == _EVENT_STOP:
                if os.WSTOPSIG(status) != signal.SIGTRAP:
                    self._do(_DETACH)
                    raise Stopped
                return
            self._do(_CONT, None, 0 if status >> 16 else os.WSTOPSIG(status) & 0x7F)

    def _wait(self, deadline: float) -> int:
        pause = 0.00002
        while True:
            pid, status = os.waitpid(self.tid, os.WNOHANG | _WALL)
            if pid:
                if not os.WIFSTOPPED(status):
                    raise ThreadGone
                return status
            if time.monotonic() > deadline:
                raise NotStopped
            time.sleep(pause)
            pause = min(pause * 1.5, 0.001)

    def run_system_call(self, seconds: float) -> None:
        """Lets it run from a `syscall` instruction right at its rip until that has been done; it is stopped then.

        Not by single steps: whoever dies while it steps a thread leaves it with a SIGTRAP.
        """
        deadline = time.monotonic() + seconds
        for _ in range(2):  # at its entry, and at its end
            self._do(_SYSCALL)
            while os.WSTOPSIG(status := self._wait(deadline)) != signal.SIGTRAP | 0x80:
                self._do(_SYSCALL, None, 0 if status >> 16 else os.WSTOPSIG(status))

    def resume(self) -> None:
        """Lets the stopped thread run, traced."""
        self._do(_CONT)

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
