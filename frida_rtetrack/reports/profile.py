"""Live blocks grouped by who allocated them: what a flame graph draws, and other tools' formats hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.progress import following
from frida_rtetrack.reports.moment import type_numbers
from frida_rtetrack.symbols.names import Names, Thread
from frida_rtetrack.symbols.symbolizer import Frame
from frida_rtetrack.symbols.visible import visible
from frida_rtetrack.tracking.grouping import added, together

NO_STACK = "(no stack)"
"""Stands where a frame would for blocks whose stack was not recorded."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The live blocks of one stack, type, thread and socket."""

    stack: int
    """Its number; 0: none was recorded."""
    frames: tuple[Frame, ...]
    """Innermost first; empty where no stack was recorded."""
    type: str
    thread: Thread | None
    """None for the baseline's blocks."""
    socket: int
    """The one that was asked for; -1: any."""
    blocks: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Profile:
    """All live blocks by who allocated them, most bytes first."""

    samples: tuple[Sample, ...]

    @property
    def blocks(self) -> int:
        """Of all samples together."""
        return sum(sample.blocks for sample in self.samples)

    @property
    def size_bytes(self) -> int:
        """Of all samples together."""
        return sum(sample.size_bytes for sample in self.samples)


GROUP_DTYPE = np.dtype(
    [
        ("stack", "<u4"),
        ("type", "<u4"),
        ("thread", "<u2"),
        ("socket", "i1"),
        ("baseline", "?"),
        ("blocks", "<u8"),
        ("bytes", "<u8"),
    ]
)
"""One group of blocks; `type` is as moment.type_numbers has it."""


def grouped(rows: NDArray[np.void]) -> NDArray[np.void]:
    """`rows`, BLOCK_DTYPE (n,), grouped by stack, type, thread, socket and baseline: GROUP_DTYPE (m,)."""
    types = type_numbers(rows)
    some, which = together(rows["stack"], types, rows["thread"], rows["socket"], rows["baseline"])
    groups = np.empty(some.size, GROUP_DTYPE)
    for name in ("stack", "thread", "socket", "baseline"):
        groups[name] = rows[name][some]
    groups["type"] = types[some]
    groups["blocks"] = np.bincount(which, minlength=some.size)
    groups["bytes"] = added(which, rows["size_bytes"], some.size)
    return groups


def profile(rows: NDArray[np.void], names: Names) -> Profile:
    """The live blocks `rows`, BLOCK_DTYPE (n,), by who allocated them."""
    groups = grouped(rows)
    samples = []
    order = np.argsort(-groups["bytes"].astype(np.int64), kind="stable")
    for group in following("looking names up", groups[order], groups.size):
        stack = names.stack(int(group["stack"]))
        samples.append(
            Sample(
                stack=int(group["stack"]),
                frames=() if stack is None else stack.frames,
                type=names.label_text(int(group["type"])),
                thread=None if group["baseline"] else names.thread(int(group["thread"])),
                socket=int(group["socket"]),
                blocks=int(group["blocks"]),
                size_bytes=int(group["bytes"]),
            )
        )
    return Profile(tuple(samples))


def frame_name(frame: Frame) -> str:
    """A frame's name, the same in every run of the program: its function, else `module+0xoff`, else its address."""
    if frame.function:
        return printable(frame.function)
    if frame.module is not None and frame.offset is not None:
        return f"{printable(frame.module)}+{frame.offset:#x}"
    return f"{frame.address:#x}"


def printable(text: str) -> str:
    """`text` as a file of UTF-8 may hold it that is looked at on a terminal."""
    return visible(text).encode(errors="backslashreplace").decode()
