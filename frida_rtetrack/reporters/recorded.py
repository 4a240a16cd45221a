"""The reports of a recording as plain text. Functions from results to lines, as in `text`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from frida_rtetrack.reporters.text import call_site, count, duration, frames, growing, leaks, lost, size
from frida_rtetrack.reports.difference import Changed, Difference
from frida_rtetrack.reports.freespace import CLASSES, FreeSpace
from frida_rtetrack.reports.leaks import LeakReport
from frida_rtetrack.reports.lost import Share
from frida_rtetrack.reports.moment import Moment
from frida_rtetrack.reports.profile import frame_name
from frida_rtetrack.reports.summary import CallSite, Start
from frida_rtetrack.reports.tree import Node
from frida_rtetrack.reports.usage import Usage, Used
from frida_rtetrack.symbols.own import own_frame

_BAR = 30
FAILURES_SHOWN = 3


def moment(of: Moment) -> str:
    """Which run, and when."""
    command = " ".join(of.run.argv) or f"process {of.run.pid}"
    held = f"{size(int(of.rows['size_bytes'].sum()))} {{}} in {count(of.rows.size, 'block')}"
    if of.temporary is not None:
        held = (
            held.format("temporary")
            + f", each freed before its thread had made {count(of.temporary, 'further allocation')}"
        )
    return f"{command}, {duration(max(of.seconds, 0))} after the start: {held.format('live')}"


def table(
    sites: Sequence[CallSite], total_bytes: int, distinct: int, often: Callable[[int], int] = lambda stack: 0
) -> Iterator[str]:
    """A line a call site: bytes, share, blocks, the largest, how often it allocated, who that is, of which type.

    `distinct`: how many there are; `often(stack)`: how often one allocated.
    """
    if not sites:
        yield "Nothing is live."
        return
    yield f"{'bytes':>12} {'share':>6} {'blocks':>10} {'largest':>12} {'times':>12}  allocated by"
    for site in sites:
        own = own_frame(site.stack)
        where = "(no stack)" if own is None else frame_name(own)
        line = f":{own.line}" if own is not None and own.line else ""
        yield (
            f"{size(site.size_bytes):>12} {share(site.size_bytes, total_bytes):>6} {site.blocks:>10,} "
            f"{size(site.largest_bytes):>12} {often(site.stack_number):>12,}  {where}{line}  [{', '.join(site.types)}]"
        )
    if distinct > len(sites):
        yield f"... and {count(distinct - len(sites), 'call site')} more (--limit)"


def share(part: int, total: int) -> str:
    """`12.3%`."""
    return f"{100 * part / total:.1f}%" if total else "-"


def tree(root: Node, *, least_share: float) -> Iterator[str]:
    """A line a function, those below it further in; what has less than `least_share` (0 to 1) of the bytes is left out."""
    yield f"{'bytes':>12} {'share':>6} {'blocks':>10}"
    least = least_share * root.size_bytes
    waiting: list[tuple[int, Node]] = [(0, root)]
    left_out = 0
    while waiting:
        depth, node = waiting.pop()
        own = f"  ({size(node.own_bytes)} by itself)" if node.own_bytes and node.children else ""
        yield f"{size(node.size_bytes):>12} {share(node.size_bytes, root.size_bytes):>6} {node.blocks:>10,}  {'  ' * depth}{node.name}{own}"
        shown = [child for child in node.children if child.size_bytes >= least]
        left_out += len(node.children) - len(shown)
        deeper = depth + (len(node.children) > 1 or node is root)  # a single way down needs no indent
        waiting.extend((deeper, child) for child in reversed(shown))
    if left_out:
        yield f"{count(left_out, 'branch').replace('branchs', 'branches')} with less than {least_share:.1%} left out (--min-share)."


def held(found: Share, limit: int, more: str = "--limit") -> Iterator[str]:
    """What else is live."""
    yield f"Still held: {size(found.size_bytes)} in {count(found.blocks, 'block')}"
    for site in found.call_sites[:limit]:
        yield from call_site(site)
    if len(found.call_sites) > limit:
        yield f"  ... and {count(len(found.call_sites) - limit, 'call site')} more ({more})"


def leak_report(found: LeakReport, limit: int, more: str = "--limit") -> Iterator[str]:
    """What nobody will free, best evidence first. `more`: how to see more than `limit` call sites."""
    if found.lost is not None:
        yield from lost(found.lost, limit)
        if found.lost.freed_since:
            yield f"{count(found.lost.freed_since, 'block')} that seemed lost then {'was' if found.lost.freed_since == 1 else 'were'} freed since: left out."
    if found.at_cleanup is not None:
        yield from leaks(found.at_cleanup)
    yield from growing(found.growing, limit, more)
    if found.at_cleanup is not None and found.at_cleanup.call_sites == found.still_held.call_sites != ():
        yield "Still held: all of what was not freed at rte_eal_cleanup, and nothing else."
    else:
        yield from held(found.still_held, limit, more)
    for what, (blocks, size_bytes) in (("EAL's own", found.eal), ("that a suppression names", found.suppressed)):
        if blocks:
            yield f"Left out: {size(size_bytes)} in {count(blocks, 'block')}, {what}."


def usage(found: Usage, limit: int) -> Iterator[str]:
    """Totals and histograms."""
    seconds = max(found.seconds, 1e-9)
    yield (
        f"{count(found.allocations, 'allocation')}, {size(found.size_bytes)}, in {duration(found.seconds)}: "
        f"{found.allocations / seconds:,.0f} a second"
    )
    if found.failed:
        yield f"{count(found.failed, 'allocation')} failed, the largest of {size(found.largest_failed_bytes)}"
    most = max((allocations for _, allocations, _ in found.sizes), default=1)
    yield "sizes"
    for at_most, allocations, total in found.sizes:
        yield f"  up to {size(at_most):>14} {allocations:>14,} {size(total):>12}  {_bar(allocations, most)}"
    yield "lifetimes of what was freed"
    most = max((blocks for _, blocks in found.lifetimes), default=1)
    for at_most_s, blocks in found.lifetimes:
        yield f"  up to {_time(at_most_s):>14} {blocks:>14,}  {_bar(blocks, most)}"
    for what, rows in (("type", found.by_type), ("socket asked for", found.by_socket), ("thread", found.by_thread)):
        yield f"by {what}"
        yield from _used(rows, limit)


def free_space(spaces: Sequence[FreeSpace], start: Start) -> Iterator[str]:
    """How the free memory was cut up when it was looked at last, and right after allocations had failed."""
    failed = [space for space in spaces if space.failed_bytes is not None]
    last = [space for space in spaces[-1:] if space.failed_bytes is None]
    for space in [*failed[-FAILURES_SHOWN:], *last]:
        when = f"{duration(max(start.seconds_until(space.at_ns), 0))} after the start"
        if space.failed_bytes is not None:
            when += f", right after an allocation of {size(space.failed_bytes)} had failed"
        yield f"DPDK's free memory, {when}:"
        yield from heaps(space)
    if len(failed) > FAILURES_SHOWN:
        yield f"... and {count(len(failed) - FAILURES_SHOWN, 'earlier failure')} (--json)"


def heaps(space: FreeSpace) -> Iterator[str]:
    """A heap's free memory, and by DPDK's size classes."""
    if not space.heaps:
        yield "  not known"
    for heap in space.heaps:
        yield (
            f"  socket {heap.socket}: {size(heap.free_bytes)} of {size(heap.size_bytes)} free ({share(heap.free_bytes, heap.size_bytes)}) in "
            f"{count(heap.free, 'piece')}; the largest block that fits: {size(heap.largest_free_bytes)} "
            f"({share(heap.largest_free_bytes, heap.free_bytes)} of what is free)"
        )
        most = max((total for _, _, total in heap.classes), default=1)
        for at_most, pieces, total in heap.classes:
            name = "larger" if at_most == CLASSES[-1] else f"up to {size(at_most)}"
            yield f"    {name:>16} {count(pieces, 'piece'):>14} {size(total):>12}  {_bar(total, most)}"
    if not space.whole:
        yield "  A heap changed faster than it could be read, and is left out."


def _used(rows: Sequence[Used], limit: int) -> Iterator[str]:
    for row in rows[:limit]:
        yield f"  {size(row.size_bytes):>14} {count(row.allocations, 'allocation'):>24}  {row.name}"
    if len(rows) > limit:
        yield f"  ... and {len(rows) - limit:,} more (--limit)"


def _time(seconds: float) -> str:
    for unit, name in ((1e-9, "ns"), (1e-6, "us"), (1e-3, "ms")):
        if seconds < 1000 * unit * 0.999:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds:,.0f} s"


def _bar(value: int, most: int) -> str:
    return "█" * min(max(round(value / (most or 1) * _BAR), 1), _BAR)


def difference(found: Difference, limit: int) -> Iterator[str]:
    """What grew and what shrank."""
    before, after = found.size_bytes
    yield f"{size(before)} in {count(found.blocks[0], 'block')} before, {size(after)} in {count(found.blocks[1], 'block')} after: {_more(after - before)}"
    grew = [each for each in found.changed if each.grown_bytes > 0 or (not each.grown_bytes and each.grown_blocks > 0)]
    shrank = found.changed[len(grew) :][::-1]
    for what, sites in (("grew", grew), ("shrank", shrank)):
        if sites:
            yield f"{count(len(sites), 'call site')} {what}"
        for site in sites[:limit]:
            yield from _changed(site)
        if len(sites) > limit:
            yield f"  ... and {len(sites) - limit:,} more (--limit)"
    if not found.changed:
        yield "No call site has other blocks than before."


def _changed(site: Changed) -> Iterator[str]:
    yield (
        f"  {_more(site.grown_bytes)} ({site.grown_blocks:+,} blocks) of type {site.type}; "
        f"{size(site.size_bytes[0])} before, {size(site.size_bytes[1])} after:"
    )
    if not site.frames:
        yield "      (no backtrace was recorded)"
    yield from frames(site.frames)


def _more(size_bytes: int) -> str:
    return f"{'+' if size_bytes >= 0 else '-'}{size(abs(size_bytes))}"
