"""What a program may not do that an agent in it must: its seccomp filters and its limits, looked at before it is touched.

Run as a process of its own, `confinement.py PID`, because a tracer's calls must all come from one thread and Frida reaps
what its own process traces: it stops one thread that waits in a call which the kernel restarts unnoticed, and prints the
thread's filters, one a line in hexadecimal (PTRACE_SECCOMP_GET_FILTER), or "unread WHY". x86-64 Linux only.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time
from collections.abc import Iterator

SEIZE, INTERRUPT, DETACH, GET_FILTER = 0x4206, 0x4207, 17, 0x420C
WALL = 0x4000_0000
STOP_SECONDS = 1.0
RESTARTED = {"0", "7", "23", "34", "35", "61", "202", "230", "270", "271", "running"}
"""System calls that go on after a stop as if there had been none (read, poll, select, pause, sleeps, wait4, futex, ...).
epoll_wait and its like do not: they end with EINTR."""

ARCH_X86_64 = 0xC000003E
AF_UNIX, SOCK_STREAM_CLOEXEC, READ_WRITE, PRIVATE_ANONYMOUS = 1, 0x80001, 3, 0x22
NEEDED: dict[str, tuple[int, tuple[int, ...]]] = {
    "mmap": (9, (0, 4096, READ_WRITE, PRIVATE_ANONYMOUS)),
    "munmap": (11, (4096, 4096)),
    "mprotect": (10, (4096, 4096, READ_WRITE)),
    "madvise": (28, (4096, 4096, 23)),
    "memfd_create": (319, (4096, 3)),
    "openat": (257, (0xFFFFFF9C, 4096, 0)),
    "read": (0, (3, 4096, 1)),
    "write": (1, (3, 4096, 1)),
    "close": (3, (3,)),
    "socket": (41, (AF_UNIX, SOCK_STREAM_CLOEXEC, 0)),
    "connect": (42, (3, 4096, 110)),
    "recvmsg": (47, (3, 4096, 0)),
    "sendmsg": (46, (3, 4096, 0)),
    "rt_sigaction": (13, (11, 4096, 0, 8)),
    "rt_sigprocmask": (14, (0, 4096, 0, 8)),
    "futex": (202, (4096, 128, 1)),
    "gettid": (186, ()),
    "tgkill": (234, (2, 2, 0)),
    "getdents64": (217, (3, 4096, 2048)),
    "getpid": (39, ()),
    "exit": (60, (0,)),
}
"""What Frida and the agent call: number and arguments (AMD64 ABI)."""

_ERRNO, _TRAP, _KILL = 0x00050000, 0x00030000, (0x80000000, 0x00000000)


def forbidden(filters: list[bytes]) -> Iterator[tuple[str, str]]:
    """(system call, what happens to the program) of those in NEEDED that one of `filters` (struct sock_filter, n) forbids."""
    for name, (number, arguments) in NEEDED.items():
        data = struct.pack("<iIQ6Q", number, ARCH_X86_64, 0, *(arguments + (0,) * 6)[:6])
        actions = [_run(program, data) & 0xFFFF0000 for program in filters]
        if any(action in _KILL for action in actions):
            yield name, "would kill it"
        elif any(action == _TRAP for action in actions):
            yield name, "would send it SIGSYS"
        elif any(action == _ERRNO for action in actions):
            yield name, "is refused"


def _run(program: bytes, data: bytes) -> int:
    """The value that a classic BPF program returns for struct seccomp_data `data` (linux/filter.h, seccomp(2))."""
    steps = list(struct.iter_unpack("<HBBI", program))
    a = x = at = 0
    memory = [0] * 16
    while True:
        code, if_true, if_false, k = steps[at]
        at += 1
        kind, operand = code & 7, x if code & 8 else k
        if kind == 0:  # BPF_LD
            mode = code & 0xE0
            a = struct.unpack_from("<I", data, k)[0] if mode == 0x20 else memory[k & 15] if mode == 0x60 else k
            a = len(data) if mode == 0x80 else a
        elif kind == 1:  # BPF_LDX
            x = memory[k & 15] if code & 0xE0 == 0x60 else len(data) if code & 0xE0 == 0x80 else k
        elif kind == 2:
            memory[k & 15] = a
        elif kind == 3:
            memory[k & 15] = x
        elif kind == 4:  # BPF_ALU
            a = _alu(code & 0xF0, a, operand)
        elif kind == 5:  # BPF_JMP
            test = code & 0xF0
            if test == 0:
                at += k
                continue
            holds = {0x10: a == operand, 0x20: a > operand, 0x30: a >= operand, 0x40: bool(a & operand)}[test]
            at += if_true if holds else if_false
        elif kind == 6:  # BPF_RET
            return a if code & 0x18 == 0x10 else k
        elif code & 0xF8 == 0:
            x = a  # BPF_TAX
        else:
            a = x


def _alu(operation: int, a: int, b: int) -> int:
    results = {
        0x00: a + b, 0x10: a - b, 0x20: a * b, 0x30: a // b if b else 0, 0x40: a | b, 0x50: a & b, 0x60: a << (b & 31),
        0x70: a >> (b & 31), 0x80: -a, 0xA0: a ^ b,
    }  # fmt: skip
    return results[operation] & 0xFFFFFFFF


def read_filters(pid: int) -> list[bytes]:
    """The filters of a thread of `pid`. Raises OSError, TimeoutError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long

    def ptrace(request: int, address: int = 0, data: object = None) -> int:
        result = libc.ptrace(request, tid, address, data)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(result)

    tid = _thread_to_stop(pid)
    ptrace(SEIZE)
    ptrace(INTERRUPT)
    deadline = time.monotonic() + STOP_SECONDS
    while not os.waitpid(tid, os.WNOHANG | WALL)[0]:
        if time.monotonic() > deadline:
            raise TimeoutError(0, "it did not stop")
        time.sleep(0.0002)
    found: list[bytes] = []
    try:
        while True:
            buffer = ctypes.create_string_buffer(8 * 4096)
            try:
                count = ptrace(GET_FILTER, len(found), buffer)
            except FileNotFoundError:  # ENOENT: that was the last
                return found
            found.append(buffer.raw[: 8 * count])
    finally:
        ptrace(DETACH)


def _thread_to_stop(pid: int) -> int:
    for name in sorted(os.listdir(f"/proc/{pid}/task"), key=int):
        with open(f"/proc/{pid}/task/{name}/syscall") as file:
            if file.read().split()[0] in RESTARTED:
                return int(name)
    raise TimeoutError(0, "no thread of it can be stopped unnoticed")


def main() -> None:
    """Does what the module's text says."""
    try:
        for program in read_filters(int(sys.argv[1])):
            print(program.hex())
    except (OSError, TimeoutError) as error:
        print("unread", error.strerror or error)
