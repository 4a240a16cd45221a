"""`rtetrack-frida flamegraph`: the page of a recording."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from frida_rtetrack.commands.moments import Source, When, filter_options, moment_options, recording_argument
from frida_rtetrack.commands.reports import say_what_is_missing
from frida_rtetrack.recording import series
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.replay import Replay
from frida_rtetrack.reporters import streams, text
from frida_rtetrack.reporters.outfile import whole
from frida_rtetrack.reporters.page import document
from frida_rtetrack.reporters.page.contents import Base, Leak, Page, leaks_at_cleanup, leaks_growing, leaks_of, page_of
from frida_rtetrack.reports import growth, lost
from frida_rtetrack.reports.history import FIELDS, History, by_site
from frida_rtetrack.reports.lost import LostFinding
from frida_rtetrack.reports.moment import ALL_BLOCKS, Filters, Moment
from frida_rtetrack.stream.events import Mark
from frida_rtetrack.tracking.map import BLOCK_FIELDS

MOMENTS = 100
FEWEST_MOMENTS = 10
BLOCKS_IN_ALL = 10_000_000
"""Live blocks that are looked at, all moments together, where nobody says at how many: some seconds."""
MARKS = {
    Mark.EAL_INIT_ENDED: "rte_eal_init returned",
    Mark.EAL_CLEANUP_STARTED: "rte_eal_cleanup",
    Mark.SIGNAL: "SIGRTMIN",
    Mark.PAUSED: "paused",
    Mark.RESUMED: "resumed",
}
MARKS_AT_MOST = 20


@click.command()
@recording_argument
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="OUT", help="The page (default: FILE.html beside it)."
)
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Another recording: show what grew and shrank since.",
)
@click.option(
    "--moments",
    type=click.IntRange(1, 1000),
    metavar="N",
    help=f"At how many moments the page knows what was live (default: {MOMENTS}, fewer where very much is).",
)
@moment_options
@filter_options
def flamegraph(
    recording: Source,
    output: Path | None,
    force: bool,
    base: Path | None,
    moments: int | None,
    when: When,
    filters: Filters,
) -> None:
    """Write one HTML page of the recording FILE: flame graph, time line, call sites, leaks, bad frees.

    It opens in any browser, without a network. The options choose the moment that it shows first, and its blocks.
    """
    output = output or recording.path.with_name(f"{recording.path.name}.html")
    with recording.open() as opened:
        with whole(output, force=force) as file, contextlib.ExitStack() as stack:
            other = None if base is None else stack.enter_context(recording.open(base))
            compared = None if other is None else _base(other, when, filters)
            document.write(page(opened, when, filters, moments, compared), file)
            if other is not None:
                say_what_is_missing(other)
        streams.write(sys.stderr, f"rtetrack-frida: the page is {output}\n")
        say_what_is_missing(opened)


def _base(other: Recording, when: When, filters: Filters) -> Base:
    _, moment = when.moment(other)
    return Base(by_site(moment.only(filters).rows), moment.names, other.path.name)


def page(
    recording: Recording, when: When, filters: Filters, count: int | None = None, base: Base | None = None
) -> Page:
    """The page of `recording`, with what was live at `count` moments, at the peak and at the one that was chosen."""
    if when.temporary is not None:
        return page_of(when.moment(recording)[1].only(filters))
    if recording.is_aggregated:
        return _aggregated(recording, when, filters, base)
    complete = Replay(recording).run()
    chosen = when.moment(recording)[1] if when != When() else complete.moment()
    found, peak = complete.summary(), complete.heap.map.peak
    marks = [(Mark(kind), at) for kind, at in complete.marks if kind in MARKS]
    start = complete.start
    last_event = recording.span_ns()[1]
    last = max(last_event, complete.now_ns)
    first = start.monotonic_ns if complete.first_ns is None else complete.first_ns
    at_ns = chosen.at_ns
    if when.at_cleanup:
        at_ns = next((at for kind, at in marks if kind is Mark.EAL_CLEANUP_STARTED), at_ns)
    count = count or min(max(BLOCKS_IN_ALL // max(peak.blocks, 1), FEWEST_MOMENTS), MOMENTS)
    wanted = {
        at_ns,
        last,
        *growth.evenly(first, last_event, count),  # where something happens, be it for a millisecond only
        *([peak.timestamp_ns] if peak.bytes else []),
    }
    history, curves = _history(recording, sorted(wanted), filters, {at_ns: chosen})
    growing = [] if filters != Filters() else curves.growing(complete.names)
    return Page(
        run=chosen.run,
        seconds=start.seconds_until(last),
        history=history,
        names=complete.names,
        base=base,
        chosen=sorted(wanted).index(at_ns),
        marks=[(start.seconds_until(at), MARKS[kind]) for kind, at in marks[:MARKS_AT_MOST]],
        leaks=[*_lost(recording, complete), *leaks_at_cleanup(found.leaks), *leaks_growing(growing)],
        bad_frees=found.bad_frees,
        bad_frees_not_kept=found.bad_frees_not_kept,
        notes=_notes(recording, found.lost),
    )


def _aggregated(recording: Recording, when: When, filters: Filters, base: Base | None) -> Page:
    """The page of a recording that has a series in place of events; filtered, of its end alone."""
    replay, chosen = when.moment(recording)
    found = replay.summary()
    if filters == Filters():
        history, growing = (
            series.history(recording, replay.start),
            series.curves(recording, replay.now_ns).growing(replay.names),
        )
        if when.at_cleanup or not history.seconds:
            history = History()
    else:
        history, growing = History(), []
    if not history.seconds:
        history.add(chosen.seconds, chosen.only(filters).rows)
    return Page(
        run=chosen.run,
        seconds=max(chosen.seconds, 0),
        history=history,
        names=replay.names,
        base=base,
        leaks=[*_lost(recording, replay), *leaks_at_cleanup(found.leaks), *leaks_growing(growing)],
        bad_frees=found.bad_frees,
        bad_frees_not_kept=found.bad_frees_not_kept,
        notes=_notes(recording, found.lost),
    )


def _lost(recording: Recording, replay: Replay) -> list[Leak]:
    """What nothing pointed to when that was looked for last, and was not freed since."""
    judged = recording.findings(LostFinding)
    return leaks_of(lost.report(judged[-1], replay.names, live=replay.live())) if judged else []


def _history(
    recording: Recording, at_ns: list[int], filters: Filters, known: dict[int, Moment]
) -> tuple[History, growth.Curves]:
    """What was live at the moments `at_ns`, and the curves of the call sites at growth's own.

    At moments that are `known` it is just that: it is exact to the event, a time may not be.
    """
    history, curves, replay = History(), growth.Curves(), Replay(recording)
    of_curves = growth.evenly(*recording.span_ns())
    stops = sorted({*at_ns, *of_curves})
    left = list(stops)
    fields = FIELDS if filters == ALL_BLOCKS else BLOCK_FIELDS

    def take() -> None:
        at = left.pop(0)
        if at in at_ns:
            rows = known[at].rows if at in known else replay.heap.map.live(fields)
            history.add(replay.start.seconds_until(at), filters.apply(rows, replay.names, at))
        if at in of_curves:
            curves.add(at, replay.heap.map.call_sites())

    replay.run(stops_ns=stops, on_stop=take)
    return history, curves


def _notes(recording: Recording, lost: int) -> list[str]:
    notes = []
    if recording.about.ended and recording.about.stopped:
        notes.append(f"The recording ended before the session did: {recording.about.stopped}.")
    if not recording.about.ended:
        notes.append("The recording ended early: what happened after its last second is not in it.")
    if recording.damage is not None:
        notes.append(recording.damage)
    if lost:
        notes.append(f"{text.count(lost, 'event')} were lost: the figures are not exact.")
    return notes
