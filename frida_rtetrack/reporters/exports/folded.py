"""Folded stacks, one a line: `outermost;...;innermost 4096` (Brendan Gregg, FlameGraph's stackcollapse-*.pl)."""

from __future__ import annotations

from typing import BinaryIO

from frida_rtetrack.reports.moment import Moment
from frida_rtetrack.reports.profile import NO_STACK, Sample, frame_name, profile


def write(moment: Moment, file: BinaryIO, *, by: str = "bytes") -> None:
    """Writes the live "bytes" or "blocks" of each stack, the largest first."""
    stacks: dict[str, int] = {}
    for sample in profile(moment.rows, moment.names).samples:
        line = _stack(sample)
        stacks[line] = stacks.get(line, 0) + (sample.blocks if by == "blocks" else sample.size_bytes)
    for line, value in sorted(stacks.items(), key=lambda stack: -stack[1]):
        file.write(f"{line} {value}\n".encode())


def _stack(sample: Sample) -> str:
    names = [frame_name(frame).replace(";", ":") for frame in reversed(sample.frames)]
    return ";".join(names) or NO_STACK
