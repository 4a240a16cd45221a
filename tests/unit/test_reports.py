"""The reports of a recording: their figures agree with what was live and what happened, whatever that was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import MadeUpNames, moments, rows, stack
from rig import Rig
from test_recording import HEAP, recorded
from written import allocated, event, freed, mark

from frida_rtetrack.commands.cli import cli
from frida_rtetrack.commands.moments import size
from frida_rtetrack.reporters import recorded as as_text
from frida_rtetrack.reporters import text
from frida_rtetrack.reports.difference import difference
from frida_rtetrack.reports.growth import Curves, evenly
from frida_rtetrack.reports.moment import Moment
from frida_rtetrack.reports.profile import profile
from frida_rtetrack.reports.summary import call_sites
from frida_rtetrack.reports.tree import Node, tree
from frida_rtetrack.reports.usage import UsageCounter
from frida_rtetrack.stream.events import EVENT_DTYPE, Api, Kind, Mark
from frida_rtetrack.symbols.names import Names

# ---- tree


def nodes(root: Node) -> list[Node]:
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting.extend(found[-1].children)
    return found


@given(moments())
def test_a_tree_adds_up_at_every_node(moment: Moment) -> None:
    root = tree(profile(moment.rows, moment.names))
    assert (root.blocks, root.size_bytes) == (moment.rows.size, int(moment.rows["size_bytes"].sum()))
    for node in nodes(root):
        assert node.size_bytes == node.own_bytes + sum(child.size_bytes for child in node.children)
        assert node.blocks == node.own_blocks + sum(child.blocks for child in node.children)
        assert len({child.name for child in node.children}) == len(node.children)
    assert all(isinstance(line, str) for line in as_text.tree(root, least_share=0.0))


# ---- difference


@given(moments(), moments())
def test_a_difference_is_what_came_and_went(before: Moment, after: Moment) -> None:
    found = difference(profile(before.rows, before.names), profile(after.rows, after.names))
    assert sum(site.grown_bytes for site in found.changed) == found.size_bytes[1] - found.size_bytes[0]
    assert sum(site.grown_blocks for site in found.changed) == found.blocks[1] - found.blocks[0]
    grown = [site.grown_bytes for site in found.changed]
    assert grown == sorted(grown, reverse=True)
    same = profile(after.rows, after.names)
    assert not difference(same, same).changed
    assert list(as_text.difference(found, 3))


# ---- growth


def curves(*by_moment: dict[int, int], at: Sequence[int] | None = None) -> Curves:
    """Live blocks of 10 bytes by stack, at these seconds; without them a second apart."""
    found = Curves()
    dtype = [("stack", "<u4"), ("blocks", "<u8"), ("bytes", "<u8"), ("oldest_ns", "<i8")]
    for second, sites in zip(at or range(len(by_moment)), by_moment, strict=True):
        found.add(second * 10**9, np.array([(s, n, 10 * n, 0) for s, n in sites.items()], dtype))
    return found


def test_what_only_ever_increases_is_growing_and_what_breathes_or_was_filled_once_is_not() -> None:
    names = cast(Names, MadeUpNames({n: stack(f"site{n}") for n in range(1, 6)}))
    count = 40
    found = curves(
        *(
            {1: 5 + second, 2: 5 + second % 3, 3: min(second, 8) + 1, 4: 7, 5: 100 + second // 2}
            for second in range(count)
        )
    ).growing(names)
    assert [site.stack and site.stack.frames[0].function for site in found] == ["site1", "site5"]
    assert (found[0].blocks, found[0].size_bytes, found[0].grown_bytes) == (44, 440, 290)
    assert found[0].bytes_per_second == pytest.approx(10.0)
    assert len(text.curve(found[0].curve)) == count
    kept_from_looking = [*range(0, 30, 8), *range(30, 40)]
    (site,) = curves(*({1: 5 + second} for second in kept_from_looking), at=kept_from_looking).growing(names)
    assert site.grown_bytes == (44 - 21) * 10  # since second 16, the first after the warming up
    assert not Curves().growing(names)
    assert evenly(5, 5)[0] == evenly(5, 5)[-1] == 5


# ---- usage

happenings = st.lists(
    st.tuples(st.sampled_from(("allocate", "free")), st.integers(0, 3), st.integers(0, 5000), st.integers(0, 10**7)),
    max_size=60,
)


@settings(deadline=None)
@given(happenings, st.integers(1, 20))
def test_sizes_and_lifetimes_are_counted_however_the_events_come(story: list[Any], cut: int) -> None:
    live: dict[int, int] = {}
    events, times, lives, now = [], [], Counter[bool](), 0
    total = 0
    for what, place, size_bytes, step in story:
        now += step
        if (what == "allocate") == (place in live):
            continue
        if what == "allocate":
            live[place] = now
            total += size_bytes
            events.append(allocated(HEAP + 64 * place, size_bytes))
        else:
            lives[now - live.pop(place) <= 1000] += 1
            events.append(freed(HEAP + 64 * place))
        times.append(now)
    counter = UsageCounter()
    for start in range(0, len(events), cut):
        counter.add(np.array(events[start : start + cut], EVENT_DTYPE), np.array(times[start : start + cut], np.int64))
        counter._match() if start % 2 and counter._waiting else None
    found = counter.usage(cast(Names, MadeUpNames()))
    allocations = sum(1 for each in events if each["kind"] == Kind.ALLOCATED)
    assert (found.allocations, found.size_bytes) == (allocations, total)
    assert sum(number for _, number, _ in found.sizes) == allocations
    assert sum(size_bytes for *_, size_bytes in found.sizes) == total
    assert sum(number for _, number in found.lifetimes) == sum(lives.values())
    assert sum(number for at_most, number in found.lifetimes if at_most < 2e-6) == lives[True]
    for used in (found.by_type, found.by_socket, found.by_thread):
        assert sum(each.allocations for each in used) == allocations
        assert sum(each.size_bytes for each in used) == total
    assert list(as_text.usage(found, 5))


def test_a_size_lies_in_its_power_of_two() -> None:
    counter = UsageCounter()
    sizes = [0, 1, 2, 3, 4, 5, 1024, 1025]
    events = np.array([allocated(HEAP + 64 * n, size_bytes) for n, size_bytes in enumerate(sizes)], EVENT_DTYPE)
    counter.add(events, np.zeros(len(sizes), np.int64))
    found = counter.usage(cast(Names, MadeUpNames()))
    assert [(at_most, number) for at_most, number, _ in found.sizes] == [
        (1, 2),
        (2, 1),
        (4, 2),
        (8, 1),
        (1024, 1),
        (2048, 1),
    ]


def test_a_resize_ends_one_life_and_begins_the_next() -> None:
    counter = UsageCounter()
    events = [
        allocated(HEAP, 10),
        event(Kind.RESIZE_STARTED, HEAP, 20, api=Api.REALLOC),
        event(Kind.RESIZE_ENDED, HEAP + 64, 20, api=Api.REALLOC),
        freed(HEAP + 64),
    ]
    counter.add(np.array(events, EVENT_DTYPE), np.array([0, 10**6, 10**6, 10**9], np.int64))
    found = counter.usage(cast(Names, MadeUpNames()))
    assert (found.allocations, found.size_bytes) == (2, 30)
    assert found.lifetimes == ((1e-3, 1), (1.0, 1))


# ---- the commands


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """EAL's block, one that is leaked, one that is freed, a duplicate free; cleaned up."""
    folder = tmp_path_factory.mktemp("recording")
    path = folder / "run.rtrec"
    rig = Rig(folder, path)
    rig.processes.targets[1].is_tracked = False
    rig.write(mark(Mark.EAL_INIT_STARTED), allocated(HEAP, 1000), mark(Mark.EAL_INIT_ENDED))
    rig.write(allocated(HEAP + 2048, 300), allocated(HEAP + 4096, 50, thread=3), freed(HEAP + 4096), freed(HEAP + 4096))
    rig.write(mark(Mark.EAL_CLEANUP_STARTED), freed(HEAP + 2048), mark(Mark.EAL_CLEANUP_ENDED))
    recorded(rig)
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)


def document(*words: object) -> dict[str, Any]:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_report_agrees_on_what_was_live(recording: Path) -> None:
    for when, live in (((), 1000), (("--at-cleanup",), 1300), (("--peak",), 1350), (("--at", "0"), 0)):
        table = document("table", *when, recording)
        assert table["bytes"] == sum(site["bytes"] for site in table["call_sites"]) == live
        assert document("tree", *when, recording)["tree"]["bytes"] == live
        assert document("summary", *when, recording)["live"]["bytes"] == live
    found = document("summary", recording)
    assert [bad["kind"] for bad in found["bad_frees"]] == ["duplicate"]
    assert found["leaks"]["bytes"] == 300
    assert document("stats", recording)["size_bytes"] == 1350
    assert document("diff", recording)["bytes"] == [0, 1000]
    assert document("diff", recording, recording)["changed"] == []
    leaks = document("leaks", recording)
    assert (leaks["at_cleanup"]["bytes"], leaks["at_cleanup"]["eal"]["bytes"]) == (300, 1000)
    assert leaks["still_held"] == []


def test_filters_and_files(recording: Path, tmp_path: Path) -> None:
    assert document("table", "--min-size", "1K", recording)["bytes"] == 0
    assert document("table", "--min-size", "1000", recording)["bytes"] == 1000
    assert document("table", "--peak", "--thread", "4003", recording)["bytes"] == 50
    assert document("tree", "--older", "3600", recording)["bytes"] == 0
    out = tmp_path / "out.txt"
    assert run("table", "-o", out, recording).stdout == ""
    assert "1,000 bytes" in out.read_text()


def test_a_summary_names_the_call_sites_that_were_asked_for(recording: Path) -> None:
    whole, some = (
        document("summary", "--peak", recording),
        document("summary", "--peak", "--min-size", "100", recording),
    )
    assert [site["bytes"] for site in whole["call_sites"]] == [1350]
    assert [site["bytes"] for site in some["call_sites"]] == [1300]
    assert (some["live"]["bytes"], some["selected"]) == (1350, {"blocks": 2, "bytes": 1300})
    assert "selected" not in whole
    assert document("summary", "--min-size", "400", recording)["leaks"]["bytes"] == 0
    assert (
        "1,350 bytes in 3 blocks; of those asked for 50 bytes in 1 block;"
        in run("summary", "--peak", "--thread", "4003", recording).output
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("table", "--peak", "--at", "1"), "different moments"),
        (("table", "--min-size", "many"), "is no size"),
    ],
)
def test_what_makes_no_sense_is_refused(recording: Path, words: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(cli, [*words, str(recording)])
    assert result.exit_code != 0
    assert said in result.output or said in str(result.exception)


def test_sizes_as_people_write_them() -> None:
    assert [size(text) for text in ("0", "4096", "64K", "1.5k", "2MiB", "1 GB")] == [
        0,
        4096,
        65536,
        1536,
        2 << 20,
        1 << 30,
    ]


def test_nothing_live_is_said(tmp_path: Path) -> None:
    rig = Rig(tmp_path, tmp_path / "empty")
    recorded(rig)
    for command in ("summary", "table", "tree", "leaks", "stats", "diff"):
        assert run(command, tmp_path / "empty").exit_code == 0
    assert "Nothing is live." in run("table", tmp_path / "empty").output


def test_what_is_own_is_shown_first() -> None:
    names = MadeUpNames({1: stack("parse", "main")})
    live = rows({"stack": 1, "size_bytes": 70}, {"stack": 1, "size_bytes": 30})
    (site,) = call_sites(live, cast(Names, names), 9)
    (_, line) = as_text.table([site], 100, 1, lambda stack: {1: 7}[stack])
    assert line.split() == ["100", "bytes", "100.0%", "2", "70", "bytes", "7", "parse", "[<unknown>]"]
