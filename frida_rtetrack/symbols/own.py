"""Whose code a frame is: the program's own, or DPDK's, the C library's, the loader's. What a reader looks for is the program's."""

from __future__ import annotations

from collections.abc import Sequence

from frida_rtetrack.symbols.names import Stack
from frida_rtetrack.symbols.symbolizer import Frame

_OTHERS = ("librte_", "libc.so", "libc-", "libpthread", "ld-linux", "ld-musl", "linux-vdso", "libstdc++", "libgcc_s")
_OTHERS_FUNCTIONS = ("rte_", "__rte_", "eal_", "malloc_heap_", "malloc_elem_", "__libc_start")
"""Of DPDK and libc where they are linked into the program."""
_BEGINNINGS = ("_start", "clone", "clone3", "start_thread")


def is_own(frame: Frame) -> bool:
    """Whether it is the program's, as far as module and function tell."""
    if frame.module is None or frame.module.startswith(_OTHERS):
        return False
    return frame.function is None or not (frame.function in _BEGINNINGS or frame.function.startswith(_OTHERS_FUNCTIONS))


def innermost_own(frames: Sequence[Frame]) -> int | None:
    """The index of the innermost frame that is the program's own; None where there is none."""
    return next((number for number, frame in enumerate(frames) if is_own(frame)), None)


def own_frame(stack: Stack | None) -> Frame | None:
    """The innermost frame that is the program's own, or just the innermost one."""
    frames = () if stack is None else stack.frames
    number = innermost_own(frames)
    return frames[number or 0] if frames else None
