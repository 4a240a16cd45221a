"""What has grown and what has shrunk between two moments, of one run or of two, by who allocated it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from frida_rtetrack.reports.profile import Profile, frame_name
from frida_rtetrack.symbols.symbolizer import Frame


@dataclass(frozen=True, slots=True)
class Changed:
    """A call site: the functions on its stack and the type, the same in both. Sizes in bytes."""

    frames: tuple[Frame, ...]
    """Innermost first; as they were in the later one, if they were there."""
    type: str
    blocks: tuple[int, int]
    """Before, and after."""
    size_bytes: tuple[int, int]

    @property
    def grown_bytes(self) -> int:
        """After less before."""
        return self.size_bytes[1] - self.size_bytes[0]

    @property
    def grown_blocks(self) -> int:
        """After less before."""
        return self.blocks[1] - self.blocks[0]


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything live before and after. Sizes in bytes."""

    blocks: tuple[int, int]
    size_bytes: tuple[int, int]
    changed: tuple[Changed, ...]
    """The call sites with other blocks or bytes than before; what grew most first, what shrank most last."""


def difference(before: Profile, after: Profile) -> Difference:
    """From `before` to `after`. Stacks are the same where their functions are, whatever their addresses."""
    frames: dict[tuple[str, ...], tuple[Frame, ...]] = {}
    counts: defaultdict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for place, profile in enumerate((before, after)):
        for sample in profile.samples:
            key = (*(frame_name(frame) for frame in sample.frames), sample.type)
            frames[key] = sample.frames
            counts[key][place] += sample.blocks
            counts[key][2 + place] += sample.size_bytes
    changed = [
        Changed(frames[key], key[-1], (each[0], each[1]), (each[2], each[3]))
        for key, each in counts.items()
        if each[0] != each[1] or each[2] != each[3]
    ]
    changed.sort(key=lambda each: (-each.grown_bytes, -each.grown_blocks, each.type))
    return Difference((before.blocks, after.blocks), (before.size_bytes, after.size_bytes), tuple(changed))
