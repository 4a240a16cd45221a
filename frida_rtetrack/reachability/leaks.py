"""What nobody will free because nobody points to it any more: the live blocks of a running program, judged.

Conservative: whatever looks like a pointer to a block, or into it, holds it. Nothing is called lost that was not lost in
every one of several looks, since a pointer may move while the memory is read; and then the threads' registers are looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.reachability.graph import Hold, Indexes, judge
from frida_rtetrack.reachability.scan import ADDRESS_MASK, NOWHERE, Blocks, Places, Pointers, scan
from frida_rtetrack.target.registers import Registers

LOOKS = 4
PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Judged:
    """The live blocks with what is known of who holds them."""

    blocks: Blocks
    holds: NDArray[np.uint8]
    """Hold of each, (n,)."""
    looks: int
    seconds: float
    """For all of it."""
    read_bytes: int
    unseen_threads: int
    """Threads whose registers could not be looked at: what only those hold is taken for lost."""
    longest_stop_s: float
    """That a thread of the program stood for its registers to be read; 0 where that was not needed."""

    def lost(self, hold: Hold) -> NDArray[np.void]:
        """The blocks that are held so, BLOCK_DTYPE (m,)."""
        rows: NDArray[np.void] = self.blocks.rows[self.holds == hold]
        return rows


def search(
    live: Callable[[], NDArray[np.void]],
    places: Callable[[], Sequence[Places]],
    registers: Callable[[], Registers],
    *,
    complete: Callable[[], bool],
) -> Judged:
    """Judges what is live.

    `live`: the live blocks of this moment, BLOCK_DTYPE (n,); `places`: where the tracked processes may have pointers now;
    `registers`: those of their threads; `complete`: whether the live set is known to be. Raises NotLive.
    """
    begun = time.monotonic()
    suspects: set[tuple[int, int]] = set()
    looks = read_bytes = 0
    while looks == 0 or (suspects and looks < LOOKS):
        if looks:
            time.sleep(PAUSE_SECONDS)
        blocks = Blocks(live())
        pointers, read = scan(blocks, places(), freed_counts=not complete())
        looks, read_bytes = looks + 1, read_bytes + read
        lost = _judge(blocks, pointers, pointers.roots()) != Hold.HELD
        keys = {key for key, is_lost in zip(blocks.identities(), lost, strict=True) if is_lost}
        suspects = suspects & keys if looks > 1 else keys
    seen = Registers()
    held = pointers.roots()
    if suspects:
        seen = registers()
        held = np.append(held, _in_registers(blocks, seen.words))
        suspects &= set(Blocks(live()).identities())
    suspected = np.fromiter((key in suspects for key in blocks.identities()), np.bool_, blocks.rows.size)
    holds = _judge(blocks, pointers, np.append(held, np.flatnonzero(~suspected)))
    return Judged(blocks, holds, looks, time.monotonic() - begun, read_bytes, seen.unseen, seen.longest_stop_s)


def _judge(blocks: Blocks, pointers: Pointers, roots: NDArray[np.int64]) -> NDArray[np.uint8]:
    return judge(blocks.rows.size, roots, *pointers.edges())


def _in_registers(blocks: Blocks, words: Mapping[int, Sequence[int]]) -> Indexes:
    values = np.array([word for each in words.values() for word in each], np.uint64) & ADDRESS_MASK
    found = blocks.containing(values)
    held: Indexes = found[found != NOWHERE]
    return held
