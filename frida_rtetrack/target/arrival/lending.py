"""Borrows a stopped thread of the program, the lender, for the creation of the stand-in, and gives it back to the bit.

The kernel may end us at any instant, and the lender then runs on from wherever it is. So each step is one ptrace call
that leads from a state in which it comes back by itself to another one:

1. Code is written where the program has none (behind a module's functions, in the same page): `syscall`, and behind it
   the way back. 2. The lender is sent there; left alone, it unmaps what it got and takes its registers back. 3. It has done
mmap(2): the region gets the stand-in's code and the whole state. 4. It is sent there; left alone, it waits five seconds
and takes its state back. 5. Extended state, signal mask and, last, registers are put back. The kernel then restarts an
interrupted system call with the time that was left, or ends it for a signal that came meanwhile (it was kept), as if the
thread had never been away.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from frida_rtetrack.target.arrival.modules import AddressMap, Memory
from frida_rtetrack.target.arrival.ptrace import NO_SYSTEM_CALL, REGISTERS, Registers, TracedThread
from frida_rtetrack.target.arrival.region import REGION_BYTES, Region, restarted

PATIENCE_S = 3.0
_GAP_BYTES = 320
_SYS_MMAP, _SYS_MUNMAP, _SYS_RT_SIGPROCMASK = 9, 11, 14
_PROT_ALL, _MAP_PRIVATE_ANONYMOUS = 7, 0x22
_ERROR = (1 << 64) - 4095
_PUSHED = {"rax": "48b8", "rcx": "48b9", "rdx": "48ba", "rbx": "48bb", "rsp": "48bc", "rbp": "48bd", "rsi": "48be"}
_PUSHED |= {"rdi": "48bf", **{f"r{8 + i}": f"49b{8 + i:x}" for i in range(8)}}
"""movabs REGISTER, imm64"""


class CannotLend(Exception):
    """The kernel or the C library refused; the program is as it was. The message says what."""


def lend(
    thread: TracedThread, memory: Memory, addresses: AddressMap, functions: Mapping[str, int], registers: Registers
) -> Region:
    """Has the stopped `thread` create the stand-in. It is detached at the end. Raises CannotLend."""
    thread.keeps_signals = True
    mask = thread.signal_mask()
    extended_state = thread.extended_state()
    gap = next(addresses.gaps_in_code(_GAP_BYTES), None)
    if gap is None:
        raise CannotLend("none of its modules has room for a few instructions")
    before = memory.read(gap, _GAP_BYTES)
    memory.write(gap, _gap_code(restarted(registers), mask).ljust(_GAP_BYTES, b"\x90"))
    try:
        region = Region(memory, _map(thread, memory.pid, registers, gap))
        region.prepare(functions, registers, extended_state, mask)
        thread.set_registers(
            registers.but(rip=region.address, rsp=region.lender_stack, orig_rax=NO_SYSTEM_CALL, rax=0, eflags=0x202)
        )
    except OSError as error:
        raise CannotLend(error.strerror or str(error)) from None
    finally:
        memory.write(gap, before)
    lent = thread.run_until(lambda: region.lent, PATIENCE_S)
    thread.interrupt(PATIENCE_S)
    if not lent:
        thread.detach()  # it waits inside of pthread_create for somebody: it comes back by itself
        raise CannotLend("pthread_create did not return")
    came = thread.raise_kept(memory.pid, PATIENCE_S)
    if not region.contains(thread.registers()["rip"]):
        thread.detach(came)  # we were away for so long that it has taken its state back
        return region
    thread.set_extended_state(extended_state)
    thread.set_signal_mask(mask)
    thread.set_registers(registers)
    created = region.created  # before it may end
    thread.detach(came)
    if created != 0:
        raise CannotLend(f"it cannot create a thread (pthread_create: errno {created})")
    return region


def _map(thread: TracedThread, pid: int, registers: Registers, gap: int) -> int:
    """Has the thread do mmap(2) for the region, from the code at `gap`, and leaves it stopped behind it."""
    arguments = {
        "rdi": 0,
        "rsi": REGION_BYTES,
        "rdx": _PROT_ALL,
        "r10": _MAP_PRIVATE_ANONYMOUS,
        "r8": NO_SYSTEM_CALL,
        "r9": 0,
    }
    thread.set_registers(registers.but(rip=gap, rax=_SYS_MMAP, orig_rax=NO_SYSTEM_CALL, **arguments))
    thread.run_system_call(PATIENCE_S)
    address = thread.registers()["rax"]
    if address >= _ERROR:
        came = thread.raise_kept(pid, PATIENCE_S)
        thread.set_registers(registers)
        thread.detach(came)
        raise CannotLend(f"the kernel does not let it map executable memory (errno {(1 << 64) - address})")
    return address


def _gap_code(back: Registers, mask: int) -> bytes:
    """`syscall`, and what the thread does if nobody stops it behind that: munmap, its signal mask, its registers."""
    code = bytearray.fromhex("0f05")
    # cmp rax, -4095; jae +15; mov rdi, rax; mov esi, REGION_BYTES; mov eax, SYS_munmap; syscall
    code += bytes.fromhex("483d01f0ffff730f4889c7be") + struct.pack("<I", REGION_BYTES)
    code += b"\xb8" + struct.pack("<I", _SYS_MUNMAP) + bytes.fromhex("0f05")
    # lea rsp, [rsp-256]; mov rax, mask; push rax; mov rsi, rsp; mov edi, SIG_SETMASK; xor edx, edx; mov r10d, 8
    code += bytes.fromhex("488da42400ffffff48b8") + struct.pack("<Q", mask)
    code += bytes.fromhex("504889e6bf0200000031d241ba08000000")
    code += b"\xb8" + struct.pack("<I", _SYS_RT_SIGPROCMASK) + bytes.fromhex("0f05")  # mov eax, ...; syscall
    code += bytes.fromhex("48b8") + struct.pack("<Q", back["eflags"]) + bytes.fromhex("509d")  # push rax; popfq
    for name in REGISTERS[:15]:
        code += bytes.fromhex(_PUSHED[name]) + struct.pack("<Q", back[name])
    code += bytes.fromhex(_PUSHED["rsp"]) + struct.pack("<Q", back["rsp"])
    return bytes(code + bytes.fromhex("ff2500000000") + struct.pack("<Q", back["rip"]))  # jmp [rip]
