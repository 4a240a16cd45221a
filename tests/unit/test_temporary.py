"""What was freed soon, and what a filter leaves of the figures: as counting by hand has it, however the events come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import MadeUpNames
from rig import Rig
from test_recording import HEAP, recorded
from written import allocated, event, freed

from frida_rtetrack.commands.cli import cli
from frida_rtetrack.commands.optionalvalue import OptionalValue
from frida_rtetrack.reports.dump import write_dump
from frida_rtetrack.reports.moment import Filters
from frida_rtetrack.reports.temporary import Temporary, blocks_of
from frida_rtetrack.reports.usage import UsageCounter
from frida_rtetrack.stream.events import EVENT_DTYPE, Api, EventBatch, Kind, Times
from frida_rtetrack.symbols.names import Names

happenings = st.lists(
    st.tuples(
        st.sampled_from(("allocate", "free", "resize")), st.integers(0, 5), st.integers(1, 3), st.integers(1, 2000)
    ),
    max_size=60,
)


def by_hand(story: list[Any], fewer_than: int) -> tuple[list[Any], set[int]]:
    """The events, and which of them allocated a block that was freed soon."""
    events: list[Any] = []
    live: dict[int, tuple[int, int, int]] = {}
    made = dict.fromkeys(range(1, 4), 0)
    soon = set()
    for what, place, thread, size_bytes in story:
        address = HEAP + 64 * place
        if what == "allocate" and place not in live:
            made[thread] += 1
            live[place] = (len(events), thread, made[thread])
            events.append(allocated(address, size_bytes, thread=thread))
        elif what == "free" and place in live:
            number, by, count = live.pop(place)
            if made[by] - count < fewer_than and number >= 0:
                soon.add(number)
            events.append(freed(address, thread=thread))
        elif what == "resize" and place in live:
            live[place] = (-1, 1, 0)
            events.append(event(Kind.RESIZE_STARTED, address, size_bytes, api=Api.REALLOC, thread=thread))
            events.append(event(Kind.RESIZE_ENDED, address, size_bytes, api=Api.REALLOC, thread=thread))
    return events, soon


@settings(deadline=None)
@given(happenings, st.integers(1, 5), st.integers(1, 20))
def test_temporary_blocks_are_those_that_counting_by_hand_finds(story: list[Any], fewer_than: int, cut: int) -> None:
    events, soon = by_hand(story, fewer_than)
    found = Temporary(fewer_than)
    for start in range(0, len(events), cut):
        part = np.array(events[start : start + cut], EVENT_DTYPE)
        found.add(part, np.arange(start, start + len(part), dtype=np.int64))
        if start % 2 and found._waiting:
            found._match()
    rows = found.rows()
    assert set(rows["sequence"].tolist()) == soon
    assert rows.size == len(soon)
    for row in rows:
        assert row["address"] == events[int(row["sequence"])]["address"]


@settings(deadline=None)
@given(happenings, st.integers(1, 20), st.integers(0, 1500))
def test_filtered_figures_are_those_of_the_blocks_that_pass(story: list[Any], cut: int, least: int) -> None:
    events, _ = by_hand([each for each in story if each[0] != "resize"], 1)
    names, filters = cast(Names, MadeUpNames()), Filters(min_bytes=least, thread="thread-2")

    def passes(batch: EventBatch, times: Times) -> Any:
        return filters.passes(blocks_of(batch, times, 0), names, 1 << 60)

    live: dict[int, bool] = {}
    made = freed_ones = 0
    for each in events:
        address, own = int(each["address"]), int(each["size_and_thread"])
        if each["kind"] == Kind.ALLOCATED:
            live[address] = own >> 44 == 2 and own & (1 << 44) - 1 >= least
            made += live[address]
        else:
            freed_ones += live.pop(address)
    counter = UsageCounter(passes)
    for start in range(0, len(events), cut):
        part = np.array(events[start : start + cut], EVENT_DTYPE)
        counter.add(part, np.arange(start, start + len(part), dtype=np.int64))
    found = counter.usage(names)
    assert (found.allocations, sum(count for _, count in found.lifetimes)) == (made, freed_ones)


# ---- the commands


def run(*words: object) -> Any:
    return CliRunner().invoke(cli, list(map(str, words)))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten blocks freed at once, one kept."""
    folder = tmp_path_factory.mktemp("recording")
    rig = Rig(folder, folder / "run.rtrec")
    for _ in range(10):
        rig.write(allocated(HEAP, 100), freed(HEAP))
    rig.write(allocated(HEAP + 128, 5), event(Kind.ALLOCATION_FAILED, 0, 1 << 30))
    write_dump(folder / "one.csv", rig.map.live(), rig.session.names.label, rig.session.names.stack_text)
    rig.write(allocated(HEAP + 256, 50))
    write_dump(folder / "two.csv", rig.map.live(), rig.session.names.label, rig.session.names.stack_text)
    recorded(rig)
    return folder / "run.rtrec"


def test_every_report_takes_temporary_blocks(recording: Path, tmp_path: Path) -> None:
    table = json.loads(run("table", "--temporary", "1", "--json", recording).stdout)
    assert (table["blocks"], table["bytes"], table["temporary"]) == (10, 1000, 1)
    assert table["call_sites"][0]["allocations"] == 12
    assert json.loads(run("tree", "--temporary", "1", "--json", recording).stdout)["tree"]["bytes"] == 1000
    assert "1,000 bytes temporary in 10 blocks" in run("table", "--temporary", "1", recording).stdout
    assert run("export", "--format", "csv", "--temporary", "1", recording).stdout.count("\n") == 11
    assert run("flamegraph", "--temporary", "1", "-o", tmp_path / "page.html", recording).exit_code == 0
    assert run("table", "--temporary", "1", "--peak", recording).exit_code != 0


def test_stats_says_what_failed_and_takes_moments_and_filters(recording: Path) -> None:
    assert "1 allocation failed, the largest of 1.0 GiB" in run("stats", recording).stdout
    assert json.loads(run("stats", "--json", "--min-size", "60", recording).stdout)["allocations"] == 10
    assert json.loads(run("stats", "--json", "--at", "0", recording).stdout)["allocations"] == 0


def test_dumps_are_compared_with_each_other_and_with_a_recording(recording: Path) -> None:
    one, two = recording.with_name("one.csv"), recording.with_name("two.csv")
    assert json.loads(run("diff", "--json", one, two).stdout)["bytes"] == [5, 55]
    assert json.loads(run("diff", "--json", one, recording).stdout)["blocks"] == [1, 2]
    assert "is a dump" in str(run("diff", "--from", "1", one, two).exception)
    one.with_name("bad.csv").write_text("Addr,Size,Type,Backtrace\nzz,1,x,<NA>\n")
    assert "cannot be read as a dump" in str(run("diff", one.with_name("bad.csv"), two).exception)


@pytest.mark.parametrize(
    ("words", "value", "left"),
    [
        (["--kind", "./app"], "all", ("./app",)),
        (["--kind=lost", "./app", "--kind"], "lost", ("./app", "--kind")),
        (["./app", "--kind=lost"], None, ("./app", "--kind=lost")),
    ],
)
def test_an_optional_value_never_swallows_the_program(
    words: list[str], value: str | None, left: tuple[str, ...]
) -> None:
    import click

    seen: list[Any] = []

    @click.command(context_settings={"allow_interspersed_args": False})
    @click.option("--kind", cls=OptionalValue, bare="all")
    @click.argument("rest", nargs=-1, type=click.UNPROCESSED)
    def command(kind: str | None, rest: tuple[str, ...]) -> None:
        seen.append((kind, rest))

    assert CliRunner().invoke(command, words).exit_code == 0
    assert seen == [(value, left)]
