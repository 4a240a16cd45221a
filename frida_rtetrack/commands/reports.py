"""The commands that read a recording: parse, replay, print."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.commands.moments import (
    Source,
    When,
    filter_options,
    moment_options,
    plain_moment_options,
    recording_argument,
    source_root_option,
    symbol_path_option,
)
from frida_rtetrack.errors import BadUsage, NotRecorded
from frida_rtetrack.recording import series
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.replay import Replay
from frida_rtetrack.reporters import outfile, recorded, sarif, streams, text
from frida_rtetrack.reporters.colour import painted
from frida_rtetrack.reports import dumped, growth, summary
from frida_rtetrack.reports.cigate import read_suppressions
from frida_rtetrack.reports.difference import difference
from frida_rtetrack.reports.dump import is_dump
from frida_rtetrack.reports.freespace import FreeSpace, free_space_json
from frida_rtetrack.reports.leaks import leak_report, leak_report_json
from frida_rtetrack.reports.lost import LostFinding
from frida_rtetrack.reports.moment import Filters, Moment
from frida_rtetrack.reports.profile import Profile, profile
from frida_rtetrack.reports.temporary import blocks_of
from frida_rtetrack.reports.tree import Node, tree
from frida_rtetrack.reports.usage import UsageCounter
from frida_rtetrack.stream.events import EventBatch, Times
from frida_rtetrack.symbols.symbolizer import frame_json
from frida_rtetrack.symbols.visible import visible

Option = Callable[[Callable[..., None]], Callable[..., None]]


def _output_options_with(limit: int) -> Option:
    """`limit`: what is shown where nothing is said."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in (
            click.option("--limit", type=click.IntRange(1), default=limit, show_default=True, metavar="N", help="So many lines or call sites."),
            click.option("--json", "as_json", is_flag=True, help="The whole result as one JSON object."),
            click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="Write it to OUT instead of standard output."),
        ):  # fmt: skip
            command = option(command)
        return command

    return add


_output_options = _output_options_with(20)


def _tell(lines: Iterable[str], document: Callable[[], dict[str, Any]], *, as_json: bool, output: Path | None) -> None:
    if output is None:
        told = json.dumps(document(), indent=1) + "\n" if as_json else painted(lines, sys.stdout)
        streams.write(sys.stdout, told)
    else:
        told = json.dumps(document(), indent=1) + "\n" if as_json else "".join(visible(line) + "\n" for line in lines)
        with outfile.whole(output) as file:
            file.write(told.encode(errors="surrogateescape"))


def say_what_is_missing(recording: Recording) -> None:
    """On standard error: a report is of what there is."""
    about = recording.about
    notes = list(recording.sources.notes)
    if recording.damage is not None:
        notes.append(f"{recording.path} is damaged. {recording.damage}")
    elif about.ended and about.stopped is not None:
        until_ns = about.until_ns or recording.span_ns()[1]
        seconds = text.duration(about.started.seconds_until(until_ns))
        notes.append(f"{recording.path} ends {seconds} after the start, before the session did: {about.stopped}.")
    elif not about.ended:
        why = "" if about.stopped is None else f" ({about.stopped})"
        notes.append(f"{recording.path} was not ended in order{why}: what came last may be missing.")
    for note in notes:
        streams.write(sys.stderr, visible(f"rtetrack-frida: {note}") + "\n")


@click.command("summary")
@plain_moment_options
@filter_options
@click.option(
    "--sarif", "sarif_path", type=click.Path(path_type=Path), metavar="FILE", help="Write it as SARIF 2.1.0, too."
)
@source_root_option
@_output_options_with(summary.CALL_SITES)
@recording_argument
def show_summary(
    *,
    recording: Source,
    when: When,
    filters: Filters,
    sarif_path: Path | None,
    source_root: Path | None,
    limit: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """What the recorded session said at its end, or would have said at another moment.

    The options choose whose call sites are named, of what is still live and of what was not freed at cleanup; what was
    counted, and the bad frees, are of the whole run.
    """
    with recording.open() as opened:
        found = when.replay(opened).summary(filters, limit)
        if sarif_path is not None:
            with outfile.whole(sarif_path) as file:
                sarif.write(found, file, root=source_root or sarif.source_root(Path.cwd()))
        _tell(text.summary(found), found.as_json, as_json=as_json, output=output)
        say_what_is_missing(opened)


@click.command("table")
@moment_options
@filter_options
@click.option(
    "--by", type=click.Choice(("bytes", "blocks", "oldest")), default="bytes", show_default=True, help="The order."
)
@_output_options
@recording_argument
def show_table(
    *, recording: Source, when: When, filters: Filters, by: str, limit: int, as_json: bool, output: Path | None
) -> None:
    """The live blocks by call site, a line each: bytes, share, blocks, the largest, how often it allocated until then."""
    with recording.open() as opened:
        replay, moment = when.moment(opened)
        moment = moment.only(filters)
        distinct = int(np.unique(moment.rows["stack"]).size)
        sites = summary.call_sites(moment.rows, moment.names, max(distinct, 1) if as_json else limit, by)
        total = int(moment.rows["size_bytes"].sum())

        def document() -> dict[str, Any]:
            rows = [
                {**summary.call_site_json(site), "allocations": replay.often.of(site.stack_number)} for site in sites
            ]
            return {**_moment_json(moment), "call_sites": rows}

        lines = [recorded.moment(moment), *recorded.table(sites, total, distinct, replay.often.of)]
        _tell(lines, document, as_json=as_json, output=output)
        say_what_is_missing(opened)


@click.command("tree")
@moment_options
@filter_options
@click.option(
    "--min-share",
    type=click.FloatRange(0, 100),
    default=1.0,
    show_default=True,
    metavar="PERCENT",
    help="The least that is shown.",
)
@_output_options
@recording_argument
def show_tree(
    *, recording: Source, when: When, filters: Filters, min_share: float, limit: int, as_json: bool, output: Path | None
) -> None:
    """The live blocks as a tree of calls, from where threads begin down to who allocated."""
    with recording.open() as opened:
        _, moment = when.moment(opened)
        moment = moment.only(filters)
        root = tree(profile(moment.rows, moment.names))
        lines = [recorded.moment(moment), *recorded.tree(root, least_share=min_share / 100)]
        _tell(lines, lambda: {**_moment_json(moment), "tree": _node_json(root)}, as_json=as_json, output=output)
        say_what_is_missing(opened)


@click.command("leaks")
@plain_moment_options
@filter_options
@click.option(
    "--suppressions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What is left out and counted: lines leak:FUNCTION.",
)
@_output_options
@recording_argument
def show_leaks(
    *,
    recording: Source,
    when: When,
    filters: Filters,
    suppressions: Path | None,
    limit: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """What nobody will free, best evidence first.

    Lost: nothing pointed to it when the running program was last asked (`leaks` at the prompt); not freed when the
    program called rte_eal_cleanup; growing: call sites with ever more live blocks; still held: the rest of what is
    live. EAL's own is left out.
    """
    named = [] if suppressions is None else read_suppressions(suppressions)
    with recording.open() as opened:
        curves = _Curves()
        replay, moment = when.moment(opened, along=None if opened.is_aggregated else curves)
        names, eal = replay.names, replay.heap.eal
        until_ns = moment.at_ns
        grown = series.curves(opened, until_ns) if opened.is_aggregated else curves.found
        until = when.until_ns(opened, until_ns)
        judged = [finding for finding in opened.findings(LostFinding) if finding.at_ns <= until]
        found = leak_report(
            moment.rows,
            names,
            eal.init_ranges,
            at_cleanup=eal.at_cleanup,
            judged=judged[-1] if judged else None,
            growing=[] if filters != Filters() else grown.growing(names),
            suppressions=named,
            passes=lambda rows: filters.apply(rows, names, until_ns),
        )
        lines = [recorded.moment(moment.only(filters))]
        if found.lost is not None:
            seconds = moment.run.start.seconds_until(found.lost.at_ns)
            lines.append(f"Looked at {text.duration(seconds)} after the start:")
        lines += recorded.leak_report(found, limit)
        if not judged:
            lines.append("What is lost was not looked for while the program ran (`leaks` at the prompt does).")
        _tell(
            lines,
            lambda: {**_moment_json(moment.only(filters)), **leak_report_json(found)},
            as_json=as_json,
            output=output,
        )
        say_what_is_missing(opened)


@click.command("stats")
@plain_moment_options
@filter_options
@_output_options
@recording_argument
def show_stats(
    *, recording: Source, when: When, filters: Filters, limit: int, as_json: bool, output: Path | None
) -> None:
    """How the heap was used until the moment: sizes, lifetimes, rates, by type, socket and thread; and how DPDK's free memory is cut up."""
    with recording.open() as opened:
        at_ns, replay = when.ns(opened), Replay(opened)
        found = _counted(replay, at_ns, filters).usage(replay.names)
        until = when.until_ns(opened, at_ns)
        spaces = [space for space in opened.findings(FreeSpace) if space.at_ns <= until]
        lines = [*recorded.usage(found, limit), *recorded.free_space(spaces, replay.start)]

        def document() -> dict[str, Any]:
            return {
                **dataclasses.asdict(found),
                "free_space": [free_space_json(each, replay.start) for each in spaces],
            }

        _tell(lines, document, as_json=as_json, output=output)
        say_what_is_missing(opened)


def _counted(replay: Replay, at_ns: int, filters: Filters) -> UsageCounter:
    if replay.kept is not None:
        if filters != Filters():
            raise NotRecorded(f"{replay.recording.path} was recorded with --aggregate: its figures cannot be filtered.")
        return UsageCounter.of(replay.kept.usage)

    def passes(events: EventBatch, times: Times) -> NDArray[np.bool_]:
        return filters.passes(blocks_of(events, times, 0), replay.names, at_ns)

    counter = UsageCounter(None if filters == Filters() else passes)
    for _, events, times in replay.recording.events():
        until = int(np.searchsorted(times, at_ns, side="right"))
        counter.add(events[:until], times[:until])
    return counter


@click.command("diff")
@click.option(
    "--from",
    "from_seconds",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="The moment of the first (default: its end).",
)
@click.option(
    "--to",
    "to_seconds",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="The moment of the second (default: its end).",
)
@filter_options
@symbol_path_option
@_output_options
@click.argument("before", type=click.Path(path_type=Path), metavar="FILE")
@click.argument("after", type=click.Path(path_type=Path), metavar="[FILE]", required=False)
def show_diff(
    *,
    before: Path,
    after: Path | None,
    from_seconds: float | None,
    to_seconds: float | None,
    symbol_path: tuple[Path, ...],
    filters: Filters,
    limit: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """What grew and what shrank between two recordings, two moments of one (--from, --to), or two dumps, by call site."""
    with ExitStack() as stack:
        opened: dict[Path, Recording] = {}

        def taken(path: Path, seconds: float | None) -> Profile:
            if is_dump(path):
                return _profile_of_dump(path, seconds, filters)
            if path not in opened:
                opened[path] = stack.enter_context(Source(path, symbol_path).open())
            return _profile(opened[path], When(at_seconds=seconds), filters)

        profiles = [
            taken(before, from_seconds if after or from_seconds is not None else 0.0),
            taken(after or before, to_seconds),
        ]
        found = difference(*profiles)
        _tell(
            recorded.difference(found, limit),
            lambda: {
                "blocks": found.blocks,
                "bytes": found.size_bytes,
                "changed": [
                    {
                        "type": site.type,
                        "blocks": site.blocks,
                        "bytes": site.size_bytes,
                        "backtrace": [frame_json(each) for each in site.frames],
                    }
                    for site in found.changed
                ],
            },
            as_json=as_json,
            output=output,
        )
        for each in opened.values():
            say_what_is_missing(each)


def _profile_of_dump(path: Path, seconds: float | None, filters: Filters) -> Profile:
    if seconds is not None or filters != Filters():
        raise BadUsage(f"{path} is a dump: it has one moment, and no blocks to filter.", "Record the session (-o).")
    return dumped.profile(path)


def _profile(opened: Recording, when: When, filters: Filters) -> Profile:
    _, moment = when.moment(opened)
    moment = moment.only(filters)
    return profile(moment.rows, moment.names)


class _Curves:
    """The live bytes of each call site from the first event to a moment."""

    def __init__(self) -> None:
        self.found = growth.Curves()

    def stops(self, recording: Recording, until_ns: int | None) -> Sequence[int]:
        first, last = recording.span_ns()
        return growth.evenly(first, last if until_ns is None else max(min(last, until_ns), first))

    def take(self, replay: Replay) -> None:
        self.found.add(replay.now_ns, replay.heap.map.call_sites())


def _moment_json(moment: Moment) -> dict[str, Any]:
    return {
        "argv": list(moment.run.argv),
        "host": moment.run.host,
        "started": moment.run.start.wall.isoformat(timespec="milliseconds"),
        "seconds": moment.seconds,
        **({} if moment.temporary is None else {"temporary": moment.temporary}),
        "blocks": int(moment.rows.size),
        "bytes": int(np.sum(moment.rows["size_bytes"])),
    }


def _node_json(root: Node) -> dict[str, Any]:
    """Without recursion: a stack may have more frames than Python calls."""
    made: dict[int, dict[str, Any]] = {}
    waiting = [root]
    order = []
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting.extend(node.children)
    for node in reversed(order):
        made[id(node)] = {
            "name": node.name,
            "blocks": node.blocks,
            "bytes": node.size_bytes,
            "own_blocks": node.own_blocks,
            "own_bytes": node.own_bytes,
            "children": [made[id(child)] for child in node.children],
        }
    return made[id(root)]


COMMANDS = (show_summary, show_table, show_tree, show_leaks, show_stats, show_diff)
