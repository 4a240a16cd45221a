"""What kind of bad free it is, with the evidence beside it: which thread, which stacks, how long ago.

Turns the tracking map's finding (numbers) into a report (names). Judges nothing that the map did not find.
"""

from __future__ import annotations

from dataclasses import dataclass

from frida_rtetrack.events import Api
from frida_rtetrack.names import Names, Stack, Thread
from frida_rtetrack.tracking import BadFree, BadFreeKind, Block, Freed


@dataclass(frozen=True, slots=True)
class AllocationEvidence:
    """The allocation that a duplicate free refers to."""

    size_bytes: int
    type: str
    thread: Thread | None
    stack: Stack | None
    seconds_before: float
    """How long before the bad free it was made."""
    baseline: bool


@dataclass(frozen=True, slots=True)
class FreeEvidence:
    """The first free of a block that was freed again."""

    function: str
    thread: Thread
    stack: Stack | None
    seconds_before: float


@dataclass(frozen=True, slots=True)
class BadFreeReport:
    """One bad free, ready to be shown. `number` counts from 1 in the order in which they happened."""

    number: int
    kind: BadFreeKind
    address: int
    function: str
    thread: Thread
    stack: Stack | None
    allocated: AllocationEvidence | None
    first_freed: FreeEvidence | None
    detail: str
    site: tuple[object, ...]
    """Equal for bad frees of the same kind with the same three stacks."""


def explain(number: int, found: BadFree, names: Names) -> BadFreeReport:
    """The report of what the tracking map found."""
    allocated = None if found.allocated is None else _allocation(found.allocated, found.timestamp_ns, names)
    first_freed = None if found.first_freed is None else _first_free(found.first_freed, found.timestamp_ns, names)
    return BadFreeReport(
        number=number,
        kind=found.kind,
        address=found.address,
        function=Api(found.api).function,
        thread=names.thread(found.thread),
        stack=names.stack(found.stack),
        allocated=allocated,
        first_freed=first_freed,
        detail=_detail(found),
        site=(
            found.kind,
            found.stack,
            found.allocated and found.allocated.stack,
            found.first_freed and found.first_freed.stack,
        ),
    )


def _allocation(block: Block, now_ns: int, names: Names) -> AllocationEvidence:
    return AllocationEvidence(
        size_bytes=block.size_bytes,
        type=names.label_text(block.label, baseline=block.baseline),
        thread=None if block.baseline else names.thread(block.thread),
        stack=names.stack(block.stack),
        seconds_before=(now_ns - block.allocated_at_ns) / 1e9,
        baseline=block.baseline,
    )


def _first_free(freed: Freed, now_ns: int, names: Names) -> FreeEvidence:
    return FreeEvidence(
        function=Api(freed.api).function,
        thread=names.thread(freed.thread),
        stack=names.stack(freed.stack),
        seconds_before=(now_ns - freed.timestamp_ns) / 1e9,
    )


def _detail(found: BadFree) -> str:
    if found.kind is BadFreeKind.DUPLICATE:
        return "The block was already freed."
    if not found.history_complete:
        return "No live block starts at this address; the oldest frees have been forgotten, so it may also be a duplicate free."
    return "No block was ever handed out at this address."
