"""Two calls of Frida's, in this process, corrected: so that a program that is stopped while Frida comes or leaves stays so.

Where Frida finds the thread stopped that it comes by, it sends SIGCONT to the program. A SIGSTOP that this thread takes for
the whole program, as any thread may, is not handed on: nobody is stopped then. And where the thread is stopped with the
program, Frida takes that for the end of what it had it do (docs/frida-notes.md). All that is between two system calls of
Frida's: seen from elsewhere it would be too late. So the words through which its library calls kill and waitpid lead past
some instructions.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import struct

from frida_rtetrack.target.arrival.modules import AddressMap, Memory

_WAITPID, _FUNCTIONS, _STANDIN = 0x10, 0x60, 0x70
_CODE = bytes.fromhex(
    "83fe12 7503 31c0 c3"  # kill: cmp esi, SIGCONT; jne 1f; xor eax, eax; ret
    "ff2552000000 0000"  # 1: jmp [kill]
    "56 ff1551000000 5a"  # waitpid: push rsi; call [waitpid]; pop rdx
    "85c0 7e35 3b054e000000 752d 4885d2 7428"  # test eax, eax; jle 2f; cmp eax, [standin]; jne 2f; test rdx, rdx; jz 2f
    "8b0a 81f97f138000 7418"  # stopped with the program:  mov ecx, [rdx]; cmp ecx, 0x80137f; je 3f
    "81f97f130000 7516"  # has it taken a SIGSTOP?  cmp ecx, 0x137f; jne 2f
    "50 89c7 be13000000 b83e000000 0f05 58"  # it is sent again:  push rax; mov edi, eax; kill(edi, SIGSTOP); pop rax
    "c7027f058000"  # 3: mov dword ptr [rdx], 0x80057f, as if it had been interrupted: Frida has it go on
    "c3"  # 2: ret
)
"""For x86-64."""


def keep_stops(tid: int) -> None:
    """From here on Frida continues no program, and what stops one reaches it past stand-in `tid`, by which Frida comes or leaves."""
    page = _corrected()
    if page is not None:
        struct.pack_into("<I", page, _STANDIN, tid)


@functools.cache
def _corrected() -> mmap.mmap | None:
    """The page with the code; None where there can be none, or Frida's library is not to be written to: then all is as Frida has it."""
    try:
        memory = Memory(os.getpid())
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(_CODE)
        libc = ctypes.CDLL(None)
        real = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in (libc.kill, libc.waitpid)]
        struct.pack_into("<QQ", page, _FUNCTIONS, *real)
        code = ctypes.addressof(ctypes.c_char.from_buffer(page))
        corrected = {"kill": code, "waitpid": code + _WAITPID}
        for module in AddressMap(memory).modules:
            if os.path.basename(module.path).startswith("_frida."):
                for name, where in module.imports(list(corrected)):
                    memory.write(where, corrected[name].to_bytes(8, "little"))
        memory.close()
        return page
    except OSError:
        return None
