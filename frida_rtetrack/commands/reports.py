"""The commands that read a recording: parse, replay, print."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from frida_rtetrack.commands.moments import When, filter_options, moment_options, recording_argument, source_root_option
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.replay import Replay
from frida_rtetrack.reporters import outfile, recorded, sarif, streams, text
from frida_rtetrack.reporters.colour import painted
from frida_rtetrack.reports import growth, summary
from frida_rtetrack.reports.difference import difference
from frida_rtetrack.reports.leakcheck import growing_json
from frida_rtetrack.reports.moment import Filters, Moment
from frida_rtetrack.reports.profile import Profile, profile
from frida_rtetrack.reports.tree import Node, tree
from frida_rtetrack.reports.usage import UsageCounter
from frida_rtetrack.symbols.symbolizer import frame_json
from frida_rtetrack.symbols.visible import visible
from frida_rtetrack.tracking.eal import allocated_in

Option = Callable[[Callable[..., None]], Callable[..., None]]


def _output_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--limit", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="So many lines or call sites."),
        click.option("--json", "as_json", is_flag=True, help="The whole result as one JSON object."),
        click.option("-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="Write it to OUT instead of standard output."),
    ):  # fmt: skip
        command = option(command)
    return command


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
    if recording.damage is not None:
        streams.write(sys.stderr, visible(f"rtetrack-frida: {recording.path} is damaged. {recording.damage}") + "\n")
    elif not recording.about.ended:
        streams.write(
            sys.stderr,
            visible(f"rtetrack-frida: {recording.path} was not ended in order: what came last may be missing.") + "\n",
        )


@click.command("summary")
@moment_options
@click.option(
    "--sarif", "sarif_path", type=click.Path(path_type=Path), metavar="FILE", help="Write it as SARIF 2.1.0, too."
)
@source_root_option
@_output_options
@recording_argument
def show_summary(
    *,
    recording: Path,
    when: When,
    sarif_path: Path | None,
    source_root: Path | None,
    limit: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """What the recorded session said at its end, or would have said at another moment."""
    with Recording(recording) as opened:
        found = when.replay(opened).summary()
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
    *, recording: Path, when: When, filters: Filters, by: str, limit: int, as_json: bool, output: Path | None
) -> None:
    """The live blocks by call site, a line each."""
    with Recording(recording) as opened:
        _, moment = when.moment(opened)
        moment = moment.only(filters)
        distinct = int(np.unique(moment.rows["stack"]).size)
        sites = summary.call_sites(moment.rows, moment.names, max(distinct, 1) if as_json else limit, by)
        total = int(moment.rows["size_bytes"].sum())

        def document() -> dict[str, Any]:
            return {**_moment_json(moment), "call_sites": [summary.call_site_json(site) for site in sites]}

        lines = [recorded.moment(moment), *recorded.table(sites, total, distinct)]
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
    *, recording: Path, when: When, filters: Filters, min_share: float, limit: int, as_json: bool, output: Path | None
) -> None:
    """The live blocks as a tree of calls, from where threads begin down to who allocated."""
    with Recording(recording) as opened:
        _, moment = when.moment(opened)
        moment = moment.only(filters)
        root = tree(profile(moment.rows, moment.names))
        lines = [recorded.moment(moment), *recorded.tree(root, least_share=min_share / 100)]
        _tell(lines, lambda: {**_moment_json(moment), "tree": _node_json(root)}, as_json=as_json, output=output)
        say_what_is_missing(opened)


@click.command("leaks")
@filter_options
@_output_options
@recording_argument
def show_leaks(*, recording: Path, filters: Filters, limit: int, as_json: bool, output: Path | None) -> None:
    """What nobody freed, best evidence first.

    Not freed when the program called rte_eal_cleanup; growing: call sites with ever more live blocks; still held: the
    rest of what is live at the end. EAL's own is left out. What is lost, since nothing points to it any more, is
    judged on the running program: `leaks` at the prompt.
    """
    with Recording(recording) as opened:
        replay, curves = _with_curves(opened)
        names, ranges = replay.names, replay.heap.eal.init_ranges
        moment = replay.moment().only(filters)
        growing = [] if filters != Filters() else curves.growing(names)
        own = moment.rows[~allocated_in(moment.rows, ranges)]
        at_cleanup = replay.heap.eal.at_cleanup
        left = (
            None
            if at_cleanup is None
            else summary.leaks(filters.apply(at_cleanup, names, replay.now_ns), ranges, names)
        )
        stacks = [site.stack for site in growing]
        sites = [site for site in summary.call_sites(own, names, max(own.size, 1)) if site.stack not in stacks]

        def document() -> dict[str, Any]:
            return {
                **_moment_json(moment),
                "at_cleanup": left and {"blocks": left.blocks, "bytes": left.size_bytes, "eal": {"blocks": left.eal_blocks, "bytes": left.eal_bytes},
                                        "call_sites": [summary.call_site_json(site) for site in left.call_sites]},
                "growing": [growing_json(site) for site in growing],
                "still_held": [summary.call_site_json(site) for site in sites],
            }  # fmt: skip

        lines = [recorded.moment(moment)]
        if left is not None:
            lines += text.leaks(left)
        lines += [*text.growing(growing, limit), *recorded.held(sites, limit)]
        _tell(lines, document, as_json=as_json, output=output)
        say_what_is_missing(opened)


@click.command("stats")
@_output_options
@recording_argument
def show_stats(*, recording: Path, limit: int, as_json: bool, output: Path | None) -> None:
    """How the heap was used over the whole run: sizes, lifetimes, rates, by type, socket and thread."""
    with Recording(recording) as opened:
        counter = UsageCounter()
        for _, events, times in opened.chunks():
            counter.add(events, times)
        found = counter.usage(Replay(opened).names)
        _tell(recorded.usage(found, limit), lambda: dataclasses.asdict(found), as_json=as_json, output=output)
        say_what_is_missing(opened)


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
@_output_options
@click.argument("before", type=click.Path(path_type=Path), metavar="FILE")
@click.argument("after", type=click.Path(path_type=Path), metavar="[FILE]", required=False)
def show_diff(
    *,
    before: Path,
    after: Path | None,
    from_seconds: float | None,
    to_seconds: float | None,
    filters: Filters,
    limit: int,
    as_json: bool,
    output: Path | None,
) -> None:
    """What grew and what shrank between two recordings, or between two moments of one (--from, --to), by call site."""
    with ExitStack() as stack:
        first = stack.enter_context(Recording(before))
        second = first if after is None else stack.enter_context(Recording(after))
        profiles = [
            _profile(opened, When(at_seconds=seconds), filters)
            for opened, seconds in (
                (first, from_seconds if after or from_seconds is not None else 0.0),
                (second, to_seconds),
            )
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
        for opened in dict.fromkeys((first, second)):
            say_what_is_missing(opened)


def _profile(opened: Recording, when: When, filters: Filters) -> Profile:
    _, moment = when.moment(opened)
    moment = moment.only(filters)
    return profile(moment.rows, moment.names)


def _with_curves(opened: Recording) -> tuple[Replay, growth.Curves]:
    """The whole session, with the live bytes of each call site on the way."""
    replay, curves = Replay(opened), growth.Curves()
    start, end = opened.span_ns()
    replay.run(
        stops_ns=growth.evenly(start, end), on_stop=lambda: curves.add(replay.now_ns, replay.heap.map.call_sites())
    )
    return replay, curves


def _moment_json(moment: Moment) -> dict[str, Any]:
    return {
        "argv": list(moment.run.argv),
        "host": moment.run.host,
        "started": moment.run.start.wall.isoformat(timespec="milliseconds"),
        "seconds": moment.seconds,
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
