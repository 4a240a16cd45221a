"""The report of leaks: what was judged while the program ran is kept, and what contradicts it afterwards is believed."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from click.testing import CliRunner
from made_up import MadeUpNames, rows, stack
from rig import Rig
from test_recording import HEAP, recorded
from written import allocated, freed

from frida_rtetrack.commands.cli import cli
from frida_rtetrack.recording import findings
from frida_rtetrack.reporters import recorded as as_text
from frida_rtetrack.reports.cigate import Suppression
from frida_rtetrack.reports.freespace import FreeSpace, HeapSpace
from frida_rtetrack.reports.growth import Curves, Growing, GrowthWatch
from frida_rtetrack.reports.leaks import leak_report
from frida_rtetrack.reports.lost import LostFinding
from frida_rtetrack.symbols.names import Names
from frida_rtetrack.tracking.map import TrackingMap

NAMES = cast(Names, MadeUpNames({1: stack("parse", "main"), 2: stack("cache_fill", "main"), 3: stack("grow", "main")}))


def finding(lost: Any, indirectly: Any, at_ns: int = 5) -> LostFinding:
    return LostFinding(
        **{"at_ns": at_ns, "lost": lost, "indirectly_lost": indirectly, "held": 7, "eal": 2, "complete": True},
        **{"looks": 4, "seconds": 0.5, "read_bytes": 1000, "unseen_threads": 0, "longest_stop_s": 0.001},
    )


def test_lost_growing_and_held_are_told_apart_and_what_a_suppression_names_is_counted() -> None:
    live = rows(
        {"stack": 1, "size_bytes": 10},
        {"stack": 1, "size_bytes": 20},
        {"stack": 2, "size_bytes": 30},
        {"stack": 2, "size_bytes": 40},
        {"stack": 3, "size_bytes": 50},
        {"stack": 0, "size_bytes": 60},
    )
    growing = Growing(NAMES.stack(3), (1, 2), 1, 50, 49, 1.0)
    found = leak_report(
        live,
        NAMES,
        [(5, 6)],
        at_cleanup=None,
        judged=finding(live[:1], live[2:3]),
        growing=[growing],
        suppressions=[Suppression("leak", "^cache_fill$"), Suppression("badfree", "parse")],
    )
    assert found.lost is not None
    assert (found.lost.lost.size_bytes, found.lost.indirectly_lost.blocks) == (10, 0)
    assert found.growing == (growing,)
    assert (found.still_held.blocks, found.still_held.size_bytes) == (1, 20)
    assert (found.eal, found.suppressed) == ((1, 60), (2, 70))
    lines = "\n".join(as_text.leak_report(found, 5))
    assert "Left out: 60 bytes in 1 block, EAL's own." in lines
    assert "Left out: 70 bytes in 2 blocks, that a suppression names." in lines


def test_a_block_that_was_freed_afterwards_was_not_lost() -> None:
    then = rows({"stack": 1}, {"stack": 2})
    again = rows({"stack": 1, "sequence": 9}, {"stack": 2, "sequence": 1})
    found = leak_report(again, NAMES, [], at_cleanup=None, judged=finding(then, then[:0]), growing=[])
    assert found.lost is not None
    assert (found.lost.lost.blocks, found.lost.freed_since) == (1, 1)  # another block has that address now
    assert "1 block that seemed lost then was freed since: left out." in "\n".join(as_text.leak_report(found, 5))


@pytest.mark.parametrize(
    "one",
    [
        finding(rows({"stack": 1, "baseline": 1}), rows({}, {"socket": -1})),
        FreeSpace(3, (HeapSpace(0, 1 << 26, 3, 9, 1, 0, ((256, 1, 9),)),), False, 77),
    ],
)
def test_findings_come_back_as_they_were(one: findings.Finding) -> None:
    again = findings.unpack(findings.pack(one), type(one))
    for each in fields(one):
        before, after = getattr(one, each.name), getattr(again, each.name)
        assert np.array_equal(before, after) if isinstance(before, np.ndarray) else before == after


def run(*words: object) -> Any:
    return CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)


def test_a_recording_tells_what_was_lost_as_it_was_judged(tmp_path: Path) -> None:
    path = tmp_path / "run.rtrec"
    rig = Rig(tmp_path, path)
    recorder = rig.session.recorder
    assert recorder is not None
    rig.write(allocated(HEAP, 10), allocated(HEAP + 64, 20), allocated(HEAP + 128, 40))
    live = rig.map.live()
    recorder.note(finding(live[live["size_bytes"] == 10], live[:0], at_ns=1))
    recorder.note(finding(live[live["size_bytes"] < 30], live[:0], at_ns=2))
    rig.write(freed(HEAP))
    recorded(rig)
    told = json.loads(run("leaks", "--json", path).stdout)
    assert (told["lost"]["bytes"], told["lost"]["freed_since"]) == (20, 1)
    assert sum(site["bytes"] for site in told["still_held"]) == 40
    assert run("flamegraph", "-o", tmp_path / "page.html", path).exit_code == 0
    assert "lost" in (tmp_path / "page.html").read_text()
    (tmp_path / "names").write_text("leak:no_such_function\n")
    assert run("leaks", "--suppressions", tmp_path / "names", path).exit_code == 0


def test_the_curves_of_a_running_program_stay_few_and_end_where_it_is() -> None:
    tracking = TrackingMap()
    watch = GrowthWatch(tracking)
    for number in range(1000):
        tracking.apply(np.array([allocated(HEAP + 64 * number, 64)]), number)
        watch._next_s = 0.0
        watch.on_round()
    assert 41 <= len(watch._curves.at_ns) <= 82
    (site,) = watch.growing(cast(Names, MadeUpNames())) or ()
    assert list(site.curve) == sorted(site.curve)
    assert site.blocks > 900
    curves = Curves()
    curves.thin_out()
    assert curves.at_ns == []
