"""Reports as plain text: what a bad free, a stack, the figures and the summary look like to a reader.

Functions from results to lines. Who prints them, and where, is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from frida_rtetrack.reporters.tone import Line, Tone
from frida_rtetrack.reports.folded import Folded, folded
from frida_rtetrack.reports.growth import Growing
from frida_rtetrack.reports.leakcheck import LeakCheck
from frida_rtetrack.reports.lost import LostReport
from frida_rtetrack.reports.stats import Stats
from frida_rtetrack.reports.summary import LEAK_SITES, CallSite, Leaks, Summary
from frida_rtetrack.symbols.names import Names, Stack, Thread
from frida_rtetrack.symbols.own import innermost_own, is_own
from frida_rtetrack.symbols.source import line_of
from frida_rtetrack.symbols.symbolizer import Frame
from frida_rtetrack.tracking.badfree import BadFreeReport
from frida_rtetrack.tracking.heap import HeapDifference
from frida_rtetrack.tracking.map import BadFreeKind

BAD_FREES_SHOWN = 10
_LEVELS = "▁▂▃▄▅▆▇█"
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size(size_bytes: int) -> str:
    """`1,536 bytes`, `1.5 MiB`: exact below 10 KiB."""
    if abs(size_bytes) < 10 * 1024:
        return f"{size_bytes:,} byte{'' if size_bytes == 1 else 's'}"
    value, unit = float(size_bytes), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:,.1f} {_UNITS[unit]}"


def count(number: int, noun: str) -> str:
    """`1 block`, `2,000 blocks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`12 ms`, `1.5 s`, `2 min 5 s`, `3 h 20 min`."""
    if seconds < 0.0005:
        return "less than 1 ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def frame(index: int, shown: Frame) -> str:
    """One line of a stack, as gdb numbers it."""
    where = f" at {shown.file}:{shown.line}" if shown.file and shown.line else ""
    name = shown.function or "??"
    if shown.function and shown.function_offset is not None and not where:
        name += f"+{shown.function_offset:#x}"
    inlined = " (inlined)" if shown.inlined else ""
    module = (
        f" [{shown.module}+{shown.offset:#x}]"
        if shown.module and shown.offset is not None
        else f" [{shown.address:#x}]"
    )
    return f"#{index:<3d}{name}{where}{inlined}{module}"


def stack(shown: Stack | None, indent: str = "      ") -> Iterator[str]:
    """The lines of a stack."""
    if shown is None:
        yield f"{indent}(no backtrace was recorded)"
        return
    yield from frames(shown.frames, indent)
    if shown.cut:
        yield f"{indent}({shown.cut})"


def frames(shown: Sequence[Frame], indent: str = "      ") -> Iterator[str]:
    """The lines of frames, innermost first; the program's innermost own one with its source, where that is at hand."""
    own = innermost_own(shown)
    for index, each in enumerate(shown):
        tone = Tone.OWN if index == own else Tone.PLAIN if is_own(each) else Tone.ASIDE
        yield Line(indent + frame(index, each), tone)
        if index == own and (source := line_of(each)) is not None:
            yield Line(f"{indent}        {source}", Tone.SOURCE)


def bad_free_title(report: BadFreeReport) -> str:
    """The first line: `Duplicate free of address: 0x...` or `Stray free of address: 0x...`, and who did it."""
    word = "Duplicate" if report.kind is BadFreeKind.DUPLICATE else "Stray"
    kind = (
        "" if report.kind in (BadFreeKind.DUPLICATE, BadFreeKind.STRAY) else f"{report.kind.value.replace('_', ' ')}, "
    )
    return f"{word} free of address: {report.address:#x} ({kind}bad free {report.number}, {report.function} by {report.thread})"


def bad_free(report: BadFreeReport) -> Iterator[str]:
    """The whole report: title, verdict and up to three stacks."""
    yield Line(bad_free_title(report), Tone.WRONG)
    yield f"    {report.detail}"
    if report.also is not None:
        article = "an" if report.also.kind is BadFreeKind.INTERIOR else "a"
        yield f"    It may also be {article} {report.also.kind.value} free: {report.also.detail}"
    if report.element is not None:
        yield f"    DPDK's own element header there says: {report.element}."
    yield "    This free:"
    yield from stack(report.stack)
    if report.first_freed is not None:
        first = report.first_freed
        yield f"    First freed {duration(first.seconds_before)} before, {first.function} by {first.thread}:"
        yield from stack(first.stack)
    if report.allocated is not None:
        block = report.allocated
        if block.baseline:
            yield f"    The block at {block.address:#x}, of {size(block.size_bytes)}, was there before the tracking began."
        else:
            yield (
                f"    Allocated {duration(block.seconds_before)} before, {size(block.size_bytes)} of type {block.type}, "
                f"by {block.thread}:"
            )
            yield from stack(block.stack)
    for tenancy in report.earlier:
        ended = f"freed {duration(tenancy.seconds_before)} before"
        ended += " by the first free's stack" if tenancy.suspect else ""
        yield f"    Before that the address was that of a block of type {tenancy.type}, {ended}. Allocated:"
        yield from stack(tenancy.allocated)
        if not tenancy.suspect:
            yield "      Freed:"
            yield from stack(tenancy.freed)
    if report.also is not None and report.also.allocated is not None and not report.also.allocated.baseline:
        block = report.also.allocated
        yield f"    The {size(block.size_bytes)} of type {block.type} at {block.address:#x}, allocated by {block.thread}:"
        yield from stack(block.stack)


def call_site(site: CallSite) -> Iterator[str]:
    """A call site of live blocks with its stack."""
    yield f"  {size(site.size_bytes)} in {count(site.blocks, 'block')} of type {', '.join(site.types)}:"
    yield from stack(site.stack)


def stats(figures: Stats) -> Iterator[str]:
    """The answer of `stats`."""
    yield (
        f"engine: {figures.engine} ({figures.compiler}), {count(len(figures.hooks), 'function')} hooked, for {duration(figures.seconds)}"
        + (", paused" if figures.paused else "")
    )
    ways: dict[str, list[str]] = {}
    for hook in figures.hooks:
        ways.setdefault(hook["how"], []).append(hook["function"])
    for how, functions in ways.items():
        yield f"  {how}: {', '.join(functions)}"
    yield f"live          {count(figures.live_blocks, 'block')}, {size(figures.live_bytes)}"
    yield f"peak          {count(figures.peak_blocks, 'block')}, {size(figures.peak_bytes)}"
    yield (
        f"allocations   {figures.allocations:,} ({figures.allocations_per_second:,.0f} a second), "
        f"{size(figures.allocated_bytes)}; {figures.failed:,} failed"
    )
    yield f"frees         {figures.frees:,} ({figures.frees_per_second:,.0f} a second)"
    yield f"resizes       {figures.resizes:,}"
    yield f"memzones      {count(figures.memzones[0], 'block')}, {size(figures.memzones[1])} (among the live ones)"
    yield f"bad frees     {figures.bad_frees:,}"
    yield f"events lost   {figures.lost:,}"
    if figures.by_type:
        yield "by type"
        for name, blocks, size_bytes in figures.by_type[:20]:
            yield f"  {size(size_bytes):>14}  {count(blocks, 'block'):>14}  {name}"
        if len(figures.by_type) > 20:
            yield f"  ... and {len(figures.by_type) - 20} more types"
    if figures.by_socket:
        yield "by socket asked for"
        for socket, blocks, size_bytes in figures.by_socket:
            name = "any" if socket < 0 else str(socket)
            yield f"  {size(size_bytes):>14}  {count(blocks, 'block'):>14}  {name}"


def ending(summary: Summary) -> str:
    """How the program ended, as a sentence."""
    name = f"Process {summary.pid}"
    end = summary.ending
    if end.exit_status is not None:
        return f"{name} exited with status {end.exit_status}."
    if end.signal is not None:
        return f"{name} was killed by {end.signal_name}."
    stays = f"; some {end.stays_mib:g} MiB of memory stay in it" if end.stays_mib else ""
    return {
        "detached": f"{name} was detached and runs on{stays}.",
        "replaced": f"{name} replaced itself with another program (exec); the tracking ended there (--follow-fork goes on).",
        "gone": f"{name} has ended.",
    }.get(end.why, f"{name} is running.")


def summary(found: Summary) -> Iterator[str]:
    """What is said at the end."""
    yield Line("---- rtetrack-frida ----", Tone.HEADING)
    yield ending(found)
    if found.allocations == found.frees == found.live_blocks == found.failed == 0 and not found.bad_frees:
        yield "No allocation from DPDK's heap was seen."
    yield (
        f"{count(found.allocations, 'allocation')} ({size(found.allocated_bytes)}), {count(found.frees, 'free')}, "
        f"{count(found.resizes, 'resize')}" + (f", {count(found.failed, 'failed allocation')}" if found.failed else "")
    )
    yield f"at the most {size(found.peak_bytes)} in {count(found.peak_blocks, 'block')}"
    if found.lost:
        yield f"{count(found.lost, 'event')} lost: the figures above leave them out."
    if found.damage:
        damage = ", ".join(f"{number:,} {what}" for what, number in found.damage.items())
        yield f"damaged in the program's session memory, and left out: {damage}"
    if found.live_blocks:
        chosen = ""
        if found.selected is not None:
            blocks, size_bytes = found.selected
            chosen = f"; of those asked for {size(size_bytes)} in {count(blocks, 'block')}"
        live = f"still live: {size(found.live_bytes)} in {count(found.live_blocks, 'block')}{chosen}"
        yield f"{live}; the largest call sites:" if found.call_sites else live
        for site in found.call_sites:
            yield from call_site(site)
    else:
        yield "still live: nothing"
    if found.leaks is not None:
        yield from leaks(found.leaks)
    if found.leak_check is not None:
        yield from leak_check(found.leak_check)
    if found.verified is not None:
        yield from verified(found.verified, found.names)
    yield f"engine: {found.engine} ({found.compiler})"
    total = len(found.bad_frees) + found.bad_frees_not_kept
    if not total:
        yield Line("no bad frees", Tone.RIGHT)
        return
    kinds: dict[str, int] = {}
    for report in found.bad_frees:
        kinds[report.kind.value] = kinds.get(report.kind.value, 0) + 1
    yield Line(
        f"{count(total, 'bad free')}: {', '.join(f'{number:,} {kind}' for kind, number in sorted(kinds.items()))}",
        Tone.WRONG,
    )
    equal = folded(found.bad_frees)
    for each in equal[:BAD_FREES_SHOWN]:
        yield f"  {bad_free_title(each.first)}"
        if each.count > 1:
            yield f"    {again(each)}"
    left_out = total - sum(each.count for each in equal[:BAD_FREES_SHOWN])
    if left_out:
        yield f"  ... and {left_out:,} more"


def again(each: Folded) -> str:
    """How often it happened once more with the same stacks."""
    return f"... {count(each.count - 1, 'more time')}, the last {duration(each.seconds)} later"


def leaks(found: Leaks) -> Iterator[str]:
    """The leak report."""
    eal = f"(and {size(found.eal_bytes)} in {count(found.eal_blocks, 'block')} of EAL's own)"
    if not found.blocks:
        yield Line(f"at rte_eal_cleanup: everything was freed {eal}", Tone.RIGHT)
        return
    left = f"{size(found.size_bytes)} in {count(found.blocks, 'block')}"
    yield Line(f"not freed at rte_eal_cleanup: {left} {eal}", Tone.WRONG)
    for site in found.call_sites[:LEAK_SITES]:
        yield from call_site(site)
    if len(found.call_sites) > LEAK_SITES:
        yield f"  ... and {count(len(found.call_sites) - LEAK_SITES, 'call site')} more"


def growing(found: Sequence[Growing], limit: int, more: str = "--limit") -> Iterator[str]:
    """The call sites whose live blocks only increase, each with its curve."""
    if not found:
        yield "Growing: no call site has ever more live blocks."
        return
    yield Line(f"Growing: {count(len(found), 'call site')} with ever more live blocks", Tone.WRONG)
    for site in found[:limit]:
        yield (
            f"  {curve(site.curve)}  {size(site.grown_bytes)} more since the start-up, {size(round(site.bytes_per_second))} a second; "
            f"{size(site.size_bytes)} in {count(site.blocks, 'block')} now:"
        )
        yield from stack(site.stack)
    if len(found) > limit:
        yield f"  ... and {count(len(found) - limit, 'call site')} more ({more})"


def curve(values: Sequence[int]) -> str:
    """A line of bars, the highest for the most."""
    most = max(values, default=0) or 1
    return "".join(_LEVELS[round(value / most * (len(_LEVELS) - 1))] for value in values)


def leak_check(found: LeakCheck) -> Iterator[str]:
    """What `--leak-check` asked for beyond what was live at rte_eal_cleanup."""
    if found.lost is not None:
        yield from lost(found.lost, LEAK_SITES)
    if found.growing is not None:
        yield from growing(found.growing, LEAK_SITES)
    yield from found.not_told


def verified(found: HeapDifference, names: Names) -> Iterator[str]:
    """The answer of `verify`."""
    if not found:
        yield Line(
            f"verify: the {count(found.busy, 'busy block')} of DPDK's heap and the live set are the same", Tone.RIGHT
        )
        return
    yield (
        f"verify: {count(len(found.missing), 'block')} of DPDK's heap not tracked, "
        f"{count(len(found.unexpected), 'tracked block')} not busy there"
    )
    for element in found.missing[:20]:
        yield f"  missing     {element.address:#x}, element of {size(element.size_bytes)}"
    for block in found.unexpected[:20]:
        yield f"  unexpected  {block.address:#x}, {size(block.size_bytes)} of type {names.label_text(block.label)}"
        yield from stack(names.stack(block.stack))


def thread(shown: Thread | None) -> str:
    """A thread, or that it is not known."""
    return "an unknown thread" if shown is None else str(shown)


def lost(found: LostReport, sites: int) -> Iterator[str]:
    """What nothing points to any more, and how that was found out."""
    if found.lost.blocks:
        indirect = found.indirectly_lost
        yield Line(
            f"Lost: {size(found.lost.size_bytes)} in {count(found.lost.blocks, 'block')} that nothing points to"
            + (
                f", and by them {size(indirect.size_bytes)} in {count(indirect.blocks, 'block')}."
                if indirect.blocks
                else "."
            ),
            Tone.WRONG,
        )
        for site in found.lost.call_sites[:sites]:
            yield from call_site(site)
        if len(found.lost.call_sites) > sites:
            yield f"  {count(len(found.lost.call_sites) - sites, 'more call site')} are not shown."
    elif found.indirectly_lost.blocks:
        indirect = found.indirectly_lost
        yield f"Lost: {size(indirect.size_bytes)} in {count(indirect.blocks, 'block')} that only a lost block of EAL's own points to."
        for site in indirect.call_sites[:sites]:
            yield from call_site(site)
    else:
        yield Line("Nothing is lost: something points to each block.", Tone.RIGHT)
    yield f"{count(found.held, 'block')} held, {found.eal:,} of EAL's own."
    stood = (
        f"; a thread stood for {found.longest_stop_s * 1000:.2f} ms at the most, for its registers"
        if found.longest_stop_s
        else ""
    )
    yield (
        f"{size(found.read_bytes)} read in {count(found.looks, 'look')}, {duration(found.seconds)}{stood}. "
        "What merely looks like a pointer counts as one."
    )
    if found.unseen_threads:
        yield (
            f"The registers of {count(found.unseen_threads, 'thread')} could not be looked at: what nothing but those "
            "points to is taken for lost."
        )
    if not found.complete:
        yield "Not all live blocks are known here: what was freed counts as holding pointers, too."
