"""What kind of bad free it is, with the evidence beside it: which thread, which stacks, how long ago.

The tracking map finds what is not live (numbers); here it is told apart by what lies at the address, and turned into a
report (names). Whatever the evidence does not show is left open.
"""

from __future__ import annotations

from dataclasses import dataclass

from frida_rtetrack.stream.events import Api
from frida_rtetrack.symbols.names import Names, Stack, Thread
from frida_rtetrack.target.target import Target
from frida_rtetrack.tracking.map import BadFree, BadFreeKind, Block, Freed
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
    element: str | None
    """What DPDK's own element header said when the report was made: busy, free, pad; None if there is none."""
    site: tuple[object, ...]
    """Equal for bad frees of the same kind with the same three stacks."""


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
    kind, detail = _judge(found, around, names, target)
    block = found.allocated or around.container
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
        element=None if around.after_cleanup else target.space.element_state(found.address),
        site=(
            kind,
            found.stack,
            block and block.stack,
            found.first_freed and found.first_freed.stack,
        ),
    )


def _judge(found: BadFree, around: Circumstances, names: Names, target: Target) -> tuple[BadFreeKind, str]:
    address, container = found.address, around.container
    if around.after_cleanup:
        return BadFreeKind.AFTER_CLEANUP, "DPDK's heap is gone: the program has called rte_eal_cleanup."
    if found.kind is BadFreeKind.MEMZONE and found.allocated is not None:
        return BadFreeKind.MEMZONE, f"{_zone(found.allocated, names)} begins here: it is for rte_memzone_free."
    if found.kind is BadFreeKind.DUPLICATE:
        detail = "The block was already freed."
        if found.allocated is None:
            detail += " Its allocation was not seen: it is from before the tracking began."
        elif not found.history_complete:
            detail += " Events are missing in between: it may have been handed out again unseen."
        return BadFreeKind.DUPLICATE, detail
    if container is not None:
        inside = f"The address lies {address - container.address:,} bytes inside of"
        if container.api in MEMZONE_APIS:
            return BadFreeKind.MEMZONE, f"{inside} {_zone(container, names)}{_hint(container, names)}."
        what = names.label_text(container.label, baseline=container.baseline)
        return (
            BadFreeKind.INTERIOR,
            f"{inside} a live block of {container.size_bytes:,} bytes of type {what}, at {container.address:#x}.",
        )
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
