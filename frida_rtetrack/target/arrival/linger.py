"""Where this process is killed, its connections to Frida's agents stay open for a second more.

An agent whose connection ends while it is being opened, or while it answers, runs into assertions of Frida's that end the
program, or waits for ever (docs/frida-notes.md). Whoever is killed cannot wait. So another process shares the table of open
files (clone(2), CLONE_FILES): of the connections that there will be, too. At this one's end it closes all others at once. (Not at an exec of this one's, which
takes it for still there.)
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import mmap
import os
import platform
import signal
import threading
from pathlib import Path

CODE = (Path(__file__).parent / "linger.bin").read_bytes()
MEMORY_BYTES = 8192
"""The code at its beginning and the stack at its end (linger.S)."""
_RWX = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
_WAIT_FOR_CLONES = 0x40000000  # __WALL: it ends without a signal

_lock = threading.Lock()
_started: dict[int, int] = {}  # by who started it, which a fork is not


def start_once() -> None:
    """Has somebody there who stays for that second; where there can be nobody, Frida's connections end with this process."""
    if platform.machine() != "x86_64":
        return
    with _lock:
        own = os.getpid()
        if own in _started:
            return
        try:
            _started[own] = _start()
        except (OSError, AttributeError):  # no pidfd, no memory that may be run, too many processes
            _started[own] = 0
            return
        atexit.register(_end, own)


def _start() -> int:
    """The pid. Raises OSError."""
    memory = mmap.mmap(-1, MEMORY_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=_RWX)
    memory.write(CODE)
    held = ctypes.c_char.from_buffer(memory)
    function = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_int, ctypes.c_long, ctypes.c_long)(ctypes.addressof(held))
    end = os.pidfd_open(os.getpid())  # stays open, as what is waited for
    pid: int = function(end, MEMORY_BYTES, _rseq_offset())
    del function, held
    memory.close()
    if pid < 0:
        os.close(end)
        raise OSError(-pid, os.strerror(-pid))
    return pid


def _rseq_offset() -> int:
    """Where the C library has told the kernel to write to, from each thread's pointer on (rseq(2)); 0: nowhere."""
    libc = ctypes.CDLL(None)
    try:
        size, offset = (ctypes.c_uint.in_dll(libc, "__rseq_size"), ctypes.c_ssize_t.in_dll(libc, "__rseq_offset"))
    except ValueError:  # before glibc 2.35
        return 0
    return offset.value if size.value else 0


def _end(own: int) -> None:
    if os.getpid() != own:
        return
    with contextlib.suppress(OSError):
        os.kill(_started[own], signal.SIGKILL)
        os.waitpid(_started[own], _WAIT_FOR_CLONES)
