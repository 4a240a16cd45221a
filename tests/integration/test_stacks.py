"""A stack is what gdb's bt shows at the same call: the same return addresses, frame for frame."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tracked import Runner, functions

PORTABLE_FRAMES = 16
VARIANTS = ["gcc-O0", "gcc-O2", "gcc-O3", "gcc-O2-frame-pointer", "clang-O0", "clang-O2"]
CHAINS = [
    "direct",
    "inlined",
    "function_pointer",
    "tail_calls",
    "tail_into_dpdk",
    "qsort_callback",
    "noreturn_caller",
    "alloca_frame",
    "realigned_stack",
    "large_frame",
    "signal_handler",
    "forty_deep",
    "thread",
]

Stacks = dict[str, list[list[tuple[str, int]]]]
"""A chain's name -> the stacks of its allocation, its first and its second free, as (module, offset) of each frame."""


@pytest.fixture(scope="module")
def gdb_stacks(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stacks]:
    """What gdb shows for a variant of the program chains; each variant is run once."""
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    known: dict[str, Stacks] = {}

    def of(variant: str) -> Stacks:
        if variant not in known:
            output = tmp_path_factory.mktemp("gdb") / "stacks"
            script = Path(__file__).with_name("gdb_stacks.py")
            command = ["gdb", "-nx", "-batch", "-x", script, programs / f"chains-{variant}"]
            # Debug symbols of the system's libraries only make gdb slow here.
            environment = os.environ | {"GDB_STACKS": str(output), "DEBUGINFOD_URLS": ""}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            assert output.exists(), done.stderr
            calls = [json.loads(line) for line in output.read_text().splitlines()]
            known[variant] = {
                call["type"]: [[tuple(frame) for frame in calls[at + step]["frames"]] for step in range(3)]
                for at, call in enumerate(calls)
                if call["function"] == "rte_malloc"
            }
        return known[variant]

    return of


@pytest.fixture(scope="module")
def tracked_stacks(module_runner: Runner) -> Callable[[str, str], dict[str, list[list[dict[str, Any]]]]]:
    """What the tracker shows, frames as in the summary; each variant is run once an engine."""
    known: dict[tuple[str, str], dict[str, list[list[dict[str, Any]]]]] = {}

    def of(variant: str, engine: str) -> dict[str, list[list[dict[str, Any]]]]:
        if (variant, engine) not in known:
            tracked = module_runner.run(f"chains-{variant}", options=["--engine", engine])
            assert tracked.wait() == 0, tracked.stderr
            known[variant, engine] = {
                bad["allocated"]["type"]: [
                    bad["allocated"]["backtrace"],
                    bad["first_freed"]["backtrace"],
                    bad["backtrace"],
                ]
                for bad in tracked.summary["bad_frees"]
            }
        return known[variant, engine]

    return of


def physical(backtrace: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """The return addresses of a backtrace: an inlined function shares the one of the function that it is in."""
    frames: list[tuple[str, int]] = []
    last = None
    for frame in backtrace:
        if frame["address"] != last:
            frames.append((frame["module"] or "", frame["offset"]))
        last = None if not frame["inlined"] else frame["address"]
    return frames


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, programs: Path) -> str:
    if not (programs / f"chains-{request.param}").exists():
        pytest.skip("clang is not installed")
    return str(request.param)


@pytest.mark.parametrize("chain", CHAINS)
def test_stacks_equal_gdbs_frame_for_frame(
    gdb_stacks: Callable[[str], Stacks],
    tracked_stacks: Callable[[str, str], dict[str, list[list[dict[str, Any]]]]],
    variant: str,
    engine: str,
    chain: str,
) -> None:
    expected = gdb_stacks(variant)[chain]
    limit = PORTABLE_FRAMES if engine == "portable" else None
    for which, seen, wanted in zip(
        ("allocation", "first free", "second free"), tracked_stacks(variant, engine)[chain], expected, strict=True
    ):
        assert len(wanted) > 3
        assert physical(seen) == wanted[:limit], f"{which}: {functions(seen)}"


def test_the_chains_functions_have_their_names(
    tracked_stacks: Callable[[str, str], dict[str, list[list[dict[str, Any]]]]], engine: str
) -> None:
    stacks = {chain: functions(three[0]) for chain, three in tracked_stacks("gcc-O0", engine).items()}
    assert stacks["direct"][:5] == ["act", "direct_inner", "direct_outer", "direct", "main"]
    assert stacks["inlined"][:3] == ["act", "inlined_leaf", "inlined_outer"]
    assert stacks["function_pointer"][:4] == ["act", "pointed_to", "through_pointer", "function_pointer"]
    assert stacks["noreturn_caller"][:4] == ["act", "leave", "calls_leave_last", "noreturn_caller"]
    assert stacks["forty_deep"][:3] == ["act", "level_1", "level_2"]
    assert stacks["thread"][:3] == ["act", "in_thread", "thread_main"]


def test_inlined_functions_are_named_where_the_compiler_inlined_them(
    tracked_stacks: Callable[[str, str], dict[str, list[list[dict[str, Any]]]]], engine: str
) -> None:
    frames = tracked_stacks("gcc-O2", engine)["inlined"][0]
    assert functions(frames)[:3] == ["act", "inlined_leaf", "inlined_outer"]
    assert frames[1]["inlined"]
    assert frames[1]["address"] == frames[2]["address"]


def test_forty_frames_are_all_there_where_the_engine_has_them(
    tracked_stacks: Callable[[str, str], dict[str, list[list[dict[str, Any]]]]], engine: str
) -> None:
    names = functions(tracked_stacks("gcc-O2", engine)["forty_deep"][0])
    deepest = 15 if engine == "portable" else 40
    assert names[1 : deepest + 1] == [f"level_{number}" for number in range(1, deepest + 1)]
