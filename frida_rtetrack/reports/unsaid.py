"""What cannot be said at the end of a session, and why: said instead of nothing."""

from __future__ import annotations

from collections.abc import Iterator

from frida_rtetrack.target.target import Ending
from frida_rtetrack.tracking.trackedheap import TrackedHeap


def at_the_end(heap: TrackedHeap, ending: Ending, *, replaced: bool, verify: bool) -> Iterator[str]:
    """A sentence for each. `replaced`: the program executed another one, which is not followed; `verify`: the comparison was asked for."""
    if replaced and ending.why != "replaced":  # else its ending says so
        yield "The program replaced itself with another one (exec), which was not tracked (--follow-fork does)."
    why = _why_unverified(heap, ending, replaced) if verify else None
    if why is not None:
        yield f"The heap was not verified at the end: {why}."


def _why_unverified(heap: TrackedHeap, ending: Ending, replaced: bool) -> str | None:
    """Why there is no comparison; None where there is one, or where that was told."""
    if heap.view.verified is not None or ending.why == "detached":
        return None
    if heap.view.without_heap:
        return "the process that ended had none, or a forked child has it (a daemon: --follow-fork)"
    if ending.signal is not None:
        return f"the program was ended by {ending.signal_name}, and could not be asked any more"
    if replaced:
        return "the program replaced itself with another one (exec)"
    if heap.eal.at_cleanup is not None:
        return "the heap was gone, or it cannot be asked (rte_malloc_dump_heaps)"
    return "the program ended, or executed another one, in a way that is not seen (a system call of its own)"
