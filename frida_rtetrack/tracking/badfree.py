"""What kind of bad free it is, with the evidence beside it: which thread, which stacks, how long ago.

The tracking map finds what is not live (numbers); here it is told apart by what lies at the address, and turned into a
report (names). Whatever the evidence does not show is left open.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

from frida_rtetrack.stream.events import Api
from frida_rtetrack.symbols.names import Names, Stack, Thread
from frida_rtetrack.target.target import Target
from frida_rtetrack.tracking.map import BadFree, BadFreeKind, Block, Freed, Tenancy
from frida_rtetrack.tracking.rules import MEMZONE_APIS


@dataclass(frozen=True, slots=True)
class AllocationEvidence:
    """The allocation of the block that was freed before, or that the address lies in."""

    address: int
    size_bytes: int
    type: str
    thread: Thread | None
    stack: Stack | None
    timestamp_ns: int
    """When it was made, monotonic ns; of a baseline block when it was found."""
    seconds_before: float
    """How long before the bad free that was."""
    baseline: bool


@dataclass(frozen=True, slots=True)
class FreeEvidence:
    """The first free of a block that was freed again."""

    function: str
    thread: Thread
    stack: Stack | None
    timestamp_ns: int
    seconds_before: float


@dataclass(frozen=True, slots=True)
class EarlierTenancy:
    """A block that had the address before the one that was freed twice, and how it ended."""

    type: str
    allocated: Stack | None
    freed: Stack | None
    freed_at_ns: int
    seconds_before: float
    """How long before the bad free it was freed, to some milliseconds."""
    suspect: bool
    """The stack that freed it is that of the later block's first free: it may have been freed twice, and not the later one."""


@dataclass(frozen=True, slots=True)
class OtherReading:
    """What else a bad free may be, of an address that means two things."""

    kind: BadFreeKind
    detail: str
    allocated: AllocationEvidence | None


@dataclass(frozen=True, slots=True)
class BadFreeReport:
    """One bad free, ready to be shown. `number` counts from 1 in the order in which they happened."""

    number: int
    kind: BadFreeKind
    timestamp_ns: int
    """When it happened, monotonic ns."""
    address: int
    function: str
    thread: Thread
    stack: Stack | None
    allocated: AllocationEvidence | None
    first_freed: FreeEvidence | None
    detail: str
    also: OtherReading | None
    """The less likely one of two readings."""
    element: str | None
    """What DPDK's own element header said when the report was made: busy, free, pad; None if there is none."""
    site: tuple[BadFreeKind, int, int | None, int | None]
    """Equal for bad frees of the same kind with the same three stacks."""
    earlier: tuple[EarlierTenancy, ...] = ()
    """Of a duplicate: whose the address was before, the latest first; some at the most."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known around a bad free beside the tracking map's own finding."""

    container: Block | None = None
    """The block, live at that moment, that the address lies in."""
    after_cleanup: bool = False
    others: tuple[int, ...] = ()
    """Processes that share DPDK's heap and are not tracked."""


def explain(number: int, found: BadFree, around: Circumstances, names: Names, target: Target) -> BadFreeReport:
    """The report of what the tracking map found in the process `target`."""
    (kind, detail, block), *others = _readings(found, around, names, target)
    allocated = None if block is None else _allocation(block, found.timestamp_ns, names)
    first_freed = None if found.first_freed is None else _first_free(found.first_freed, found.timestamp_ns, names)
    return BadFreeReport(
        number=number,
        kind=kind,
        timestamp_ns=found.timestamp_ns,
        address=found.address,
        function=Api(found.api).function,
        thread=names.thread(found.thread),
        stack=names.stack(found.stack),
        allocated=allocated,
        first_freed=first_freed,
        detail=detail,
        also=_other(others[0], found, names) if others else None,
        element=None if around.after_cleanup else target.space.element_state(found.address),
        site=(
            kind,
            found.stack,
            None if block is None else block.stack,
            None if found.first_freed is None else found.first_freed.stack,
        ),
        earlier=tuple(_earlier(tenancy, found, names) for tenancy in found.earlier),
    )


def _earlier(tenancy: Tenancy, found: BadFree, names: Names) -> EarlierTenancy:
    return EarlierTenancy(
        type=names.label_text(tenancy.label),
        allocated=names.stack(tenancy.stack),
        freed=names.stack(tenancy.free_stack),
        freed_at_ns=tenancy.freed_at_ns,
        seconds_before=max((found.timestamp_ns - tenancy.freed_at_ns) / 1e9, 0.0),
        suspect=_is_suspect(tenancy, found),
    )


def _is_suspect(tenancy: Tenancy, found: BadFree) -> bool:
    """Whether the block's first free came from who had freed that earlier one, of another call path than the block's.

    Of the same call path it would prove nothing: so a program frees all blocks of a kind.
    """
    return (
        found.allocated is not None
        and found.first_freed is not None
        and tenancy.free_stack == found.first_freed.stack != 0
        and tenancy.stack != found.allocated.stack
    )


class _Reading(NamedTuple):
    kind: BadFreeKind
    detail: str
    block: Block | None
    """Whose allocation is the evidence."""


def _other(reading: _Reading, found: BadFree, names: Names) -> OtherReading:
    block = reading.block
    allocated = None if block is None else _allocation(block, found.timestamp_ns, names)
    return OtherReading(reading.kind, reading.detail, allocated)


def _readings(found: BadFree, around: Circumstances, names: Names, target: Target) -> list[_Reading]:
    """What the bad free is: one reading, or two, the likelier first."""
    container = around.container
    if around.after_cleanup:
        gone = "DPDK's heap is gone: the program has called rte_eal_cleanup."
        return [_Reading(BadFreeKind.AFTER_CLEANUP, gone, found.allocated)]
    if found.kind is BadFreeKind.MEMZONE and found.allocated is not None:
        begins = f"{_zone(found.allocated, names)} begins here: it is for rte_memzone_free."
        return [_Reading(BadFreeKind.MEMZONE, begins, found.allocated)]
    if found.kind is not BadFreeKind.DUPLICATE:
        kind, detail = _not_freed_before(found, around, names, target)
        return [_Reading(kind, detail, container)]
    duplicate = _Reading(BadFreeKind.DUPLICATE, _freed_before(found), found.allocated)
    if container is None:
        return [duplicate]
    inside = _Reading(*_inside(found.address, container, names), container)
    return [inside, duplicate] if _by_the_user_of(container, found, names) else [duplicate, inside]


def _by_the_user_of(container: Block, found: BadFree, names: Names) -> bool:
    """Whether who made the bad free rather uses the live block around the address than the one freed there before.

    The same thread counts, or else the longer way from the thread's start that its stack shares with theirs.
    """
    earlier = [each for each in (found.allocated, found.first_freed) if each is not None]
    of_earlier, of_container = any(each.thread == found.thread for each in earlier), container.thread == found.thread
    if of_earlier != of_container:
        return of_container
    shared = max((_shared_frames(found.stack, each.stack, names) for each in earlier), default=0)
    return _shared_frames(found.stack, container.stack, names) > shared


def _shared_frames(one: int, other: int, names: Names) -> int:
    """How many frames two stacks share, from the outermost on."""
    stacks = names.stack(one), names.stack(other)
    if stacks[0] is None or stacks[1] is None:
        return 0
    pairs = zip(reversed(stacks[0].frames), reversed(stacks[1].frames), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0].address == pair[1].address, pairs))


def _freed_before(found: BadFree) -> str:
    detail = "The block was already freed."
    if found.allocated is None:
        detail += " Its allocation was not seen: it is from before the tracking began."
    elif not found.history_complete:
        detail += " Events are missing in between: it may have been handed out again unseen."
    if any(_is_suspect(tenancy, found) for tenancy in found.earlier):
        detail += (
            " Suspect its first free, not this one: the same stack had freed an earlier block at this address, and may have"
            " freed that one twice."
        )
    return detail


def _inside(address: int, container: Block, names: Names) -> tuple[BadFreeKind, str]:
    inside = f"The address lies {address - container.address:,} bytes inside of"
    if container.api in MEMZONE_APIS:
        return BadFreeKind.MEMZONE, f"{inside} {_zone(container, names)}{_hint(container, names)}."
    what = names.label_text(container.label, baseline=container.baseline)
    return (
        BadFreeKind.INTERIOR,
        f"{inside} a live block of {container.size_bytes:,} bytes of type {what}, at {container.address:#x}.",
    )


def _not_freed_before(found: BadFree, around: Circumstances, names: Names, target: Target) -> tuple[BadFreeKind, str]:
    address = found.address
    if around.container is not None:
        return _inside(address, around.container, names)
    in_heap = target.space.in_dpdk_heap(address)
    if in_heap is False or (in_heap is None and _is_elsewhere(address, names, target)):
        return BadFreeKind.FOREIGN, f"The address lies {_place(address, names, target)}: DPDK never handed it out."
    detail = "No block starts at this address" + (" of DPDK's heap." if in_heap else ".")
    if around.others:
        pids = ", ".join(map(str, around.others))
        detail += f" The heap is shared with process {pids}, not tracked: the block may be one of theirs."
    elif not found.history_complete:
        detail += " The oldest frees have been forgotten: it may also be a duplicate free."
    return BadFreeKind.STRAY, detail


def _zone(block: Block, names: Names) -> str:
    text = names.label_text(block.label)
    return f"memzone {text.removeprefix('memzone:')}"


def _hint(block: Block, names: Names) -> str:
    """A mempool keeps its objects in memzones named MP_... (RTE_MEMPOOL_MZ_PREFIX, lib/mempool/rte_mempool.h)."""
    name = names.label_text(block.label).removeprefix("memzone:")
    if name.startswith("MP_"):
        return f", memory of mempool {name[3:]}: its objects are for rte_mempool_put"
    return ": it is no block of its own"


def _is_elsewhere(address: int, names: Names, target: Target) -> bool:
    """Whether what lies there cannot be DPDK's heap, even where it is not known where that is."""
    mapping = target.space.find(address)
    return (
        names.thread_of_stack(address, target.number) is not None
        or names.module_at(address, target.number) is not None
        or (mapping is not None and mapping.path in ("[heap]", "[stack]"))
    )


def _place(address: int, names: Names, target: Target) -> str:
    thread = names.thread_of_stack(address, target.number)
    if thread is not None:
        return f"on the stack of {thread}"
    module = names.module_at(address, target.number)
    if module is not None:
        return f"in {module} (a global or code)"
    return target.space.describe(address)


def _allocation(block: Block, now_ns: int, names: Names) -> AllocationEvidence:
    return AllocationEvidence(
        address=block.address,
        size_bytes=block.size_bytes,
        type=names.label_text(block.label, baseline=block.baseline),
        thread=None if block.baseline else names.thread(block.thread),
        stack=names.stack(block.stack),
        timestamp_ns=block.allocated_at_ns,
        seconds_before=(now_ns - block.allocated_at_ns) / 1e9,
        baseline=block.baseline,
    )


def _first_free(freed: Freed, now_ns: int, names: Names) -> FreeEvidence:
    return FreeEvidence(
        function=Api(freed.api).function,
        thread=names.thread(freed.thread),
        stack=names.stack(freed.stack),
        timestamp_ns=freed.timestamp_ns,
        seconds_before=(now_ns - freed.timestamp_ns) / 1e9,
    )
