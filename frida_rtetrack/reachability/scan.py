"""One look at all that may hold a pointer to a live block: in the program's memory, and in the blocks themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack import progress
from frida_rtetrack.errors import TargetEnded
from frida_rtetrack.reachability.graph import Indexes
from frida_rtetrack.reachability.memory import PAGE_BYTES, ProcessMemory, Ranges, as_ranges, common, without

ADDRESS_MASK = np.uint64((1 << 48) - 1)
"""What is left of a word when a tag in the bits that x86-64 (4 levels of pages) and arm64 do not address is taken off."""
NOWHERE = -1


class Blocks:
    """Live blocks in order of their addresses."""

    def __init__(self, live: NDArray[np.void]) -> None:
        """`live`: BLOCK_DTYPE (n,), in any order."""
        self.rows = live[np.argsort(live["address"], kind="stable")]
        self.starts: NDArray[np.uint64] = np.ascontiguousarray(self.rows["address"])
        self.ends: NDArray[np.uint64] = self.starts + np.maximum(self.rows["size_bytes"], np.uint64(1))

    def containing(self, addresses: NDArray[np.uint64]) -> Indexes:
        """The index of the block that each address (n,) lies in, NOWHERE for none."""
        at = np.searchsorted(self.starts, addresses, side="right") - 1
        inside = at >= 0
        inside[inside] = addresses[inside] < self.ends[at[inside]]
        return np.where(inside, at, NOWHERE)

    def pages(self) -> Ranges:
        """The pages that they lie on."""
        page = np.uint64(PAGE_BYTES)
        return as_ranges(
            np.column_stack([self.starts // page * page, (self.ends + page - np.uint64(1)) // page * page])
        )

    def identities(self) -> list[tuple[int, int]]:
        """(address, number of the event that allocated it) of each: what tells a block from a later one at its address."""
        return list(zip(self.starts.tolist(), self.rows["sequence"].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Places:
    """Where one process may have pointers."""

    pid: int
    number: int
    """Its index in the session's process table."""
    writable: Ranges
    """What the program can write: neither Frida's memory nor ours."""
    heap: Ranges
    """DPDK's, in which only live blocks count; what was freed may still hold what it once held."""


@dataclass(frozen=True, slots=True)
class Pointers:
    """What was found: every word that points to or into a live block. All (n,)."""

    at: NDArray[np.uint64]
    """Addresses of the words."""
    process: NDArray[np.int64]
    """Index in the session's process table of the one in whose memory it was found."""
    source: Indexes
    """The block that the word is in; NOWHERE: it is elsewhere in the program's memory."""
    target: Indexes
    """The block that it points to."""
    offset: NDArray[np.uint64]
    """How far into it (bytes)."""

    def roots(self) -> Indexes:
        """The blocks that are pointed to from elsewhere."""
        outer: Indexes = self.target[self.source == NOWHERE]
        return outer

    def edges(self) -> tuple[Indexes, Indexes]:
        """(sources, targets) of the pointers between blocks."""
        inner = self.source != NOWHERE
        return self.source[inner], self.target[inner]


def scan(blocks: Blocks, places: Iterable[Places], *, freed_counts: bool) -> tuple[Pointers, int]:
    """Reads the memory of each process once. Returns what points to `blocks`, and how many bytes were read.

    `freed_counts`: the live set is not known to be complete, so that all of DPDK's heap counts. Raises NotPermitted.
    """
    found: list[tuple[NDArray[np.uint64], NDArray[np.int64], Indexes, Indexes, NDArray[np.uint64]]] = []
    read_bytes = 0
    pages = blocks.pages()
    for place in places if blocks.starts.size else ():
        ranges = place.writable
        if not freed_counts:
            in_blocks = common(common(ranges, place.heap), pages)
            ranges = as_ranges(np.concatenate([without(ranges, place.heap), in_blocks]))
        try:
            with ProcessMemory(place.pid) as memory:
                for at, words in memory.words(ranges):
                    progress.tell("looking for pointers", _before(ranges, int(at[-1])), _before(ranges, _END) + 1)
                    found.append(_pointers(blocks, place, at, words, freed_counts))
                read_bytes += memory.read_bytes
        except TargetEnded:  # what it held, it holds no more
            continue
        finally:
            progress.tell("looking for pointers", 1, 1)
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    return Pointers(*(columns or _NOTHING)), read_bytes


def _before(ranges: Ranges, address: int) -> int:
    """How many bytes of `ranges` lie before `address`."""
    starts, ends = ranges[:, 0].astype(np.int64), ranges[:, 1].astype(np.int64)
    return int((np.clip(address, starts, ends) - starts).sum())


_END = (1 << 63) - 1
_NOTHING: Sequence[NDArray[np.generic]] = [np.empty(0, kind) for kind in (np.uint64, *[np.int64] * 3, np.uint64)]


def _pointers(
    blocks: Blocks, place: Places, at: NDArray[np.uint64], words: NDArray[np.uint64], freed_counts: bool
) -> tuple[NDArray[np.uint64], NDArray[np.int64], Indexes, Indexes, NDArray[np.uint64]]:
    low = blocks.starts[0]
    values = words & ADDRESS_MASK
    near = np.flatnonzero(values - low < blocks.ends.max() - low)
    target = blocks.containing(values[near])
    near, target = near[target != NOWHERE], target[target != NOWHERE]
    source = blocks.containing(at[near])
    counts = source != target
    if not freed_counts:
        counts &= (source != NOWHERE) | ~_inside(at[near], place.heap)
    near, source, target = near[counts], source[counts], target[counts]
    offset = values[near] - blocks.starts[target]
    return at[near], np.full(near.size, place.number), source, target, offset


def _inside(addresses: NDArray[np.uint64], ranges: Ranges) -> NDArray[np.bool_]:
    at = np.searchsorted(ranges[:, 0], addresses, side="right") - 1
    inside = at >= 0
    inside[inside] = addresses[inside] < ranges[at[inside], 1]
    return inside
