"""Whether a stopped thread stands where it may be made to call pthread_create: a judgement on its whole stack.

That takes malloc's locks, and those of the dynamic linker and of the thread list. So no frame may be one of the C
library, of the dynamic linker or of another allocator: but for the thread's start, and an innermost call that only
waits. A constructor stands above the dynamic linker's frames, an atexit handler or a thread-specific destructor above
the C library's, so both are refused by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from frida_rtetrack.target.arrival.modules import AddressMap, Memory, Module
from frida_rtetrack.target.arrival.ptrace import Registers
from frida_rtetrack.target.arrival.unwind import Frame
from frida_rtetrack.target.arrival.waits import FUTEX, WAITS

_ALLOCATORS = ("malloc", "_ZnwmRKSt9nothrow_t")
_START_FRAMES = 2  # __libc_start_call_main and __libc_start_main, or start_thread and clone
_WAITING_FRAMES = 8
_SYSTEM_CALL = b"\x0f\x05"
_FUTEX_WAIT_BITSET = 9
_FUTEX_COMMAND = 0x7F


class Unsafe(Exception):
    """Not here; the message says why."""


class Judge:
    """Judges stacks of one process."""

    def __init__(self, memory: Memory, addresses: AddressMap) -> None:
        self._memory = memory
        self.libc = next((module for module in addresses.modules if module.export("__libc_start_main")), None)
        self._guarded = {id(module) for module in addresses.modules if _is_guarded(module)}
        program = addresses.program
        self._own_allocator = program is not None and id(program) in self._guarded
        if program is not None:
            self._guarded.discard(id(program))
        self._waiting_mutex = (
            {self.libc.export(name) for name in ("pthread_mutex_lock", "syscall")} if self.libc else set()
        )

    def check(self, frames: Sequence[Frame], registers: Registers) -> None:
        """Raises Unsafe unless the thread stands where it may be borrowed."""
        guarded = [id(frame.module) in self._guarded for frame in frames]
        call = self.waiting_in(registers)
        inner = 0
        while inner < len(frames) and guarded[inner]:
            inner += 1
        if inner == len(frames):
            raise Unsafe("no function of the program's own is under way")
        outer = len(frames) - 1 if not guarded[-1] else len(frames)  # _start is the program's
        start = outer
        while start > 0 and guarded[start - 1]:
            start -= 1
        if outer - start > _START_FRAMES:
            raise Unsafe("it is on its way out, or a thread that ends")
        if any(guarded[inner:start]):
            raise Unsafe("the C library or the dynamic linker has called it")
        if inner:
            self._check_wait(frames[:inner], registers, call)
        elif self._own_allocator and call in (None, FUTEX) and len(frames) > 1:
            raise Unsafe("it computes, and the program has its own malloc")

    def _check_wait(self, inner: Sequence[Frame], registers: Registers, call: int | None) -> None:
        if call is None:
            raise Unsafe("it is in the C library")
        if inner[0].module is not self.libc or any(frame.module is not self.libc for frame in inner):
            raise Unsafe("it is in the dynamic linker or in an allocator")
        if len(inner) > _WAITING_FRAMES:
            raise Unsafe("it waits deep inside the C library")
        # FUTEX_WAIT, without _BITSET: the C library's own locks, malloc's among them, and mutexes of the program's.
        locks = call == FUTEX and registers["rsi"] & _FUTEX_COMMAND != _FUTEX_WAIT_BITSET
        if locks and (self._own_allocator or inner[-1].function not in self._waiting_mutex):
            raise Unsafe("it waits for a lock of the C library's")

    def waiting_in(self, registers: Registers) -> int | None:
        """The number of the system call of WAITS that it waits in, None if it is not in one."""
        call = registers.signed("orig_rax")
        if call not in WAITS:
            return None
        try:
            at_call = self._memory.read(registers["rip"] - 2, 2) == _SYSTEM_CALL
        except OSError:
            return None
        return call if at_call else None


def _is_guarded(module: Module) -> bool:
    name = module.path.rpartition("/")[2]
    if module.export("__libc_start_main") or name.startswith(("ld-", "ld.", "libpthread", "libdl.", "librt.")):
        return True
    return any(module.export(allocator) for allocator in _ALLOCATORS)
