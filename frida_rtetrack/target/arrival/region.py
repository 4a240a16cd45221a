"""The memory of the stand-in: 64 KiB in the program with standin.bin, what it reads and writes, and the lender's state.

Offsets are those of standin.S. Nothing here needs ptrace(2): the host talks to the stand-in through this memory.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path

from frida_rtetrack.target.arrival.modules import Memory
from frida_rtetrack.target.arrival.ptrace import REGISTERS, Registers

REGION_BYTES = 0x10000
FUNCTIONS = ("pthread_create", "pthread_self", "pthread_detach", "sigaction", "munmap")
GATED_FUNCTIONS = ("dlopen", "dlmopen", "dlclose", "fork", "__fork", "_Fork", "daemon", "forkpty")
OPTIONAL_FUNCTIONS = (*GATED_FUNCTIONS, "_IO_list_lock", "_IO_list_unlock")
"""Of the C library, in the order of standin.S. Not every C library has each of the optional ones."""
GUARDED, SETTLED, GONE = 1, 2, 3
"""States of the stand-in: it takes a SIGSEGV that is Frida's fault; it only waits; it has left."""
LENDER_PATIENCE_MS = 5000
STANDIN_PATIENCE_MS = 10_000
"""After so long without a tracer, or a sign of life from the host, they go on by themselves."""

CODE = (Path(__file__).parent / "standin.bin").read_bytes()
_FUNCTIONS, _CREATED, _LENT, _TID, _COMMAND, _STATE, _HEARTBEAT, _PATIENCE, _LENDER_PATIENCE = (
    *(0x800, 0x830, 0x834, 0x838, 0x83C, 0x840, 0x844, 0x848, 0x84C),
)
_MASK, _LENDER_FLAGS, _LENDER_RSP, _LENDER_RIP, _LENDER_REGISTERS = 0x858, 0x860, 0x868, 0x870, 0x878
_STANDIN_MASK = 0xA40
(
    _GATED_FUNCTIONS,
    _GATES,
    _LIST_LOCK,
    _FRIDAS_MASK,
    _GATE_CLOSED,
    _GATE_INSIDE,
    _GATE_IN_USE,
    _ASK_LOCKS,
    _ASKED_LOCKS,
    _OWN_PID,
    _FRIDAS_TID,
) = (*(0xB00, 0xB40, 0xB80, 0xB90, 0xB98, 0xB9C, 0xBA0, 0xBA4, 0xBA8, 0xBAC, 0xBB0),)
_EXTENDED_STATE = 0x1000
_WRITABLE_CODE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rwxp 00000000 00:00 0 *$", re.MULTILINE)
_MOST_CODE_BYTES = 1 << 24

# Not to be blocked: faults (a blocked one ends the program) and SIGSETXID (33), which setuid() waits for every thread to take.
_UNBLOCKED = (4, 5, 7, 8, 11, 31, 33)
# SIGKILL, SIGSTOP, and SIGCANCEL (32), which the C library unblocks in every thread.
_ALWAYS_UNBLOCKED = 1 << 9 - 1 | 1 << 19 - 1 | 1 << 32 - 1
BLOCKED = (1 << 64) - 1 & ~sum(1 << number - 1 for number in _UNBLOCKED)
"""What the stand-in blocks, and all of Frida's threads, which inherit it: the program's handlers do not run on them."""

_RESTART = {-512: None, -513: None, -514: None, -516: 219}
"""What the kernel leaves in rax where a system call is to be restarted (include/linux/errno.h): as it was, or restart_syscall."""


class Region:
    """The region at `address`."""

    def __init__(self, memory: Memory, address: int) -> None:
        self.memory = memory
        self.address = address

    def prepare(self, functions: Mapping[str, int], registers: Registers, extended_state: bytes, mask: int) -> None:
        """Writes the code, and the state that the lender takes back by itself if it must."""
        page = bytearray(CODE)
        for index, name in enumerate(FUNCTIONS):
            struct.pack_into("<Q", page, _FUNCTIONS + 8 * index, functions[name])
        for index, name in enumerate(GATED_FUNCTIONS):
            struct.pack_into("<Q", page, _GATED_FUNCTIONS + 8 * index, functions.get(name, 0))
        if "_IO_list_lock" in functions and "_IO_list_unlock" in functions:
            struct.pack_into("<QQ", page, _LIST_LOCK, functions["_IO_list_lock"], functions["_IO_list_unlock"])
        struct.pack_into("<Q", page, _FRIDAS_MASK, BLOCKED & ~_ALWAYS_UNBLOCKED)
        struct.pack_into("<II", page, _PATIENCE, STANDIN_PATIENCE_MS, LENDER_PATIENCE_MS)
        back = restarted(registers)
        struct.pack_into("<QQQQ", page, _MASK, mask, back["eflags"], back["rsp"], back["rip"])
        struct.pack_into("<Q", page, _STANDIN_MASK, BLOCKED)
        struct.pack_into("<15Q", page, _LENDER_REGISTERS, *(back[name] for name in REGISTERS[:15]))
        self.memory.write(self.address, bytes(page))
        self.memory.write(self.address + _EXTENDED_STATE, extended_state)

    @property
    def lender_stack(self) -> int:
        """Where the lender's stack begins, aligned for a call."""
        return self.address + REGION_BYTES

    def contains(self, address: int) -> bool:
        """Whether `address` is in the region's code."""
        return self.address <= address < self.address + len(CODE)

    @property
    def lent(self) -> bool:
        """Whether the lender has done what it was to do."""
        return self._number(_LENT) != 0

    @property
    def created(self) -> int:
        """What pthread_create returned: 0, or an errno."""
        return self._number(_CREATED)

    @property
    def tid(self) -> int:
        """The stand-in's thread id, 0 until it has begun."""
        return self._number(_TID)

    @property
    def state(self) -> int:
        """GUARDED, SETTLED or GONE. Raises OSError where it has gone and unmapped the region."""
        return self._number(_STATE)

    def command(self, state: int) -> None:
        """Tells the stand-in what to become."""
        self.memory.write(self.address + _COMMAND, struct.pack("<I", state))

    def beat(self, number: int) -> None:
        """Gives the stand-in a sign of life."""
        self.memory.write(self.address + _HEARTBEAT, struct.pack("<I", number & 0xFFFFFFFF))

    def gate(self, name: str) -> int:
        """The address of what waits before it calls the C library's function `name`."""
        return self.address + self.memory.word(self.address + _GATES + 8 * GATED_FUNCTIONS.index(name))

    def function(self, name: str) -> int:
        """The address of the C library's function `name`, 0 where there is none."""
        return self.memory.word(self.address + _GATED_FUNCTIONS + 8 * GATED_FUNCTIONS.index(name))

    def gate_words(self) -> dict[str, int]:
        """Addresses of what the agent needs to close the gate (agent/gate.js)."""
        offsets = {"closed": _GATE_CLOSED, "state": _STATE, "ask": _ASK_LOCKS, "asked": _ASKED_LOCKS}
        return {name: self.address + offset for name, offset in offsets.items()}

    def set_gate(self, *, closed: bool, in_use: bool) -> None:
        """Closes or opens the gate. `in_use`: modules or the agent may use it, and the region must stay."""
        self.memory.write(self.address + _GATE_IN_USE, struct.pack("<I", in_use))
        self.memory.write(self.address + _GATE_CLOSED, struct.pack("<I", closed))

    def note_frida(self, tid: int) -> None:
        """Thread `tid` has Frida's agent in its hands: where the host is gone the gate stays closed until that has ended."""
        self.memory.write(self.address + _FRIDAS_TID, struct.pack("<I", tid))

    @property
    def fridas_tid(self) -> int:
        """The thread that was noted, 0 for none; it may have ended. Raises OSError."""
        return self._number(_FRIDAS_TID)

    @property
    def inside_gate(self) -> int:
        """Threads that stand in the gate."""
        return self._number(_GATE_INSIDE)

    def ask_locks(self, number: int) -> None:
        """Has the stand-in take the dynamic linker's lock and that of fork and give them back; `locks_answered` then."""
        self.memory.write(self.address + _ASK_LOCKS, struct.pack("<I", number))

    def locks_answered(self, number: int) -> bool:
        """Whether it had them since `ask_locks(number)`."""
        return self._number(_ASKED_LOCKS) == number

    def _number(self, offset: int) -> int:
        return int.from_bytes(self.memory.read(self.address + offset, 4), "little")


def restarted(registers: Registers) -> Registers:
    """The registers with which a thread does the system call again that it was stopped in, as the kernel would have it."""
    code = registers.signed("rax")
    if registers.signed("orig_rax") < 0 or code not in _RESTART:
        return registers
    again = _RESTART[code]
    return registers.but(rip=registers["rip"] - 2, rax=registers["orig_rax"] if again is None else again)


def pages_for_code(pid: int) -> frozenset[int]:
    """Pages of anonymous memory that is writable and executable: the stand-in's region and Frida's loader lie in such."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return frozenset()
    ranges = ((int(low, 16), int(high, 16)) for low, high in _WRITABLE_CODE.findall(maps))
    return frozenset(page for low, high in ranges for page in range(low, min(high, low + _MOST_CODE_BYTES), 4096))
