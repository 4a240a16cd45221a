"""A spawned program is the user's own: its arguments, streams, signals and exit status pass through untouched."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from tracked import Runner, eventually, functions


@pytest.mark.by_both_compilers
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["status", "0"], 0),
        (["status", "7"], 7),
        (["status", "255"], 255),
        (["_exit", "9"], 9),
        (["exit-from-thread", "11"], 11),
        (["abort"], 128 + signal.SIGABRT),
        (["raise", str(int(signal.SIGTERM))], 128 + signal.SIGTERM),
        (["raise", str(int(signal.SIGKILL))], 128 + signal.SIGKILL),
        (["raise", str(int(signal.SIGSEGV))], 128 + signal.SIGSEGV),
        (["raise", str(int(signal.SIGTRAP))], 128 + signal.SIGTRAP),
        (["raise", str(int(signal.SIGABRT))], 128 + signal.SIGABRT),
        (["handled"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_exit_status_is_the_programs_own(runner: Runner, command: list[str], status: int) -> None:
    tracked = runner.run("nasty", *command)
    assert tracked.wait() == status, tracked.stderr
    target = tracked.summary["target"]
    assert (target["exit_status"], target["signal"]) == (
        (status, None) if status < 128 or status == 255 else (None, status - 128)
    )
    assert tracked.summary["bad_frees"] == []
    assert tracked.summary["events"]["allocations"] > 0


def test_allocations_before_an_exit_from_a_thread_are_seen(runner: Runner, engine: str) -> None:
    tracked = runner.run("nasty", "exit-from-thread", 11, options=["--engine", engine])
    assert any("exiting_thread" in functions(site["backtrace"]) for site in tracked.summary["call_sites"])


def test_arguments_reach_the_program_untouched(runner: Runner) -> None:
    words = [
        "--no-huge",
        "-m",
        "512",
        "--help",
        "--version",
        "--engine",
        "portable",
        "--",
        "-x",
        "",
        "two words",
        "é*$HOME",
        "--summary",
    ]
    tracked = runner.run("echo", *words)
    assert re.findall("^argument (.*)$", tracked.stdout, re.MULTILINE) == [runner.program("echo"), *words]


def test_a_double_dash_before_the_program_is_accepted(runner: Runner) -> None:
    tracked = runner.run("--", runner.program("echo"), "a", "--", "b")
    assert re.findall("^argument (.*)$", tracked.stdout, re.MULTILINE)[1:] == ["a", "--", "b"]


def test_environment_directory_and_streams_are_the_callers(runner: Runner, tmp_path: Path) -> None:
    tracked = runner.spawn("echo", env={"WITH_NEWLINE": "one\ntwo", "EMPTY": ""}, cwd=tmp_path)
    tracked.tell("to be read")
    assert tracked.finish() == 0
    given = dict(runner.environment, WITH_NEWLINE="one", EMPTY="")
    seen = dict(re.findall("^environment ([^=]+)=(.*)$", tracked.stdout, re.MULTILINE))
    assert {key: value.split("\n")[0] for key, value in given.items()} == seen
    assert f"\ndirectory {tmp_path}\n" in tracked.stdout
    assert "\nterminal 0\n" in tracked.stdout
    assert "\ninput to be read\n" in tracked.stdout
    assert "to standard error\n" in tracked.stderr


def test_standard_output_has_nothing_of_ours(runner: Runner) -> None:
    bare = runner.start("demo")
    bare.finish()
    assert runner.run("demo").stdout == bare.stdout == "demo: done\n"


def test_a_program_is_found_in_path(runner: Runner) -> None:
    link = runner.folder / f"found{os.getpid()}"
    link.symlink_to(runner.program("nasty"))
    tracked = runner.run(link.name, "status", 4, env={"PATH": f"{runner.folder}:{os.environ['PATH']}"})
    assert tracked.wait() == 4


def test_ctrl_c_reaches_the_program(runner: Runner, engine: str) -> None:
    tracked = runner.spawn("waiter", "sigint", options=["--engine", engine])
    tracked.wait_for("^ready$")
    tracked.send_signal(signal.SIGINT)
    assert tracked.wait() == 5
    assert tracked.summary["target"]["exit_status"] == 5


def test_a_second_ctrl_c_kills_a_program_that_ignores_the_first(runner: Runner) -> None:
    tracked = runner.spawn("waiter", "ignore-sigint")
    tracked.wait_for("^ready$")
    tracked.send_signal(signal.SIGINT)
    tracked.wait_for("^interrupted$")
    tracked.send_signal(signal.SIGINT)
    assert tracked.wait() == 128 + signal.SIGKILL
    assert tracked.summary["target"]["signal"] == signal.SIGKILL


def test_ctrl_c_kills_a_program_that_has_no_handler(runner: Runner) -> None:
    tracked = runner.spawn("waiter")
    tracked.wait_for("^ready$")
    tracked.send_signal(signal.SIGINT)
    assert tracked.wait() == 128 + signal.SIGINT


def test_sigterm_is_passed_on(runner: Runner) -> None:
    tracked = runner.spawn("waiter")
    tracked.wait_for("^ready$")
    tracked.send_signal(signal.SIGTERM)
    assert tracked.wait() == 128 + signal.SIGTERM
    assert tracked.summary["live"]["blocks"] > 0


def test_allocations_inside_rte_eal_init_are_seen(runner: Runner, engine: str) -> None:
    tracked = runner.spawn("waiter", options=["--engine", engine])
    tracked.wait_for("^ready$")
    os.kill(tracked.target, signal.SIGRTMIN)
    tracked.wait_for("SIGRTMIN: .* written to", "stderr")
    assert {"rte_services", "rte_service_core_states", "kept"} <= {row.type for row in tracked.dump}
    assert tracked.finish() == 0


def test_the_summary_has_the_promised_shape(runner: Runner) -> None:
    found = runner.run("demo").summary
    assert set(found) >= {"version", "engine", "target", "events", "live", "peak", "bad_frees", "call_sites"}
    assert set(found["target"]) >= {"pid", "argv", "exit_status", "signal"}
    assert set(found["events"]) >= {"allocations", "frees", "resizes", "lost"}
    assert found["target"]["argv"] == [runner.program("demo")]
    for bad in found["bad_frees"]:
        assert set(bad) >= {"kind", "address", "tid", "thread", "backtrace", "allocated", "first_freed"}
        assert re.fullmatch("0x[0-9a-f]+", bad["address"])
        for frame in bad["backtrace"]:
            assert set(frame) == {"address", "module", "offset", "function", "file", "line", "inlined"}
            assert re.fullmatch("0x[0-9a-f]+", frame["address"])
    assert found["peak"]["bytes"] >= found["live"]["bytes"] > 0


@pytest.mark.by_both_compilers
def test_live_and_peak_are_exact(runner: Runner, engine: str) -> None:
    path = runner.folder / "load.txt"
    empty = runner.run("load", 0, 8, 0, path, options=["--engine", engine]).summary
    demo = runner.run("demo", options=["--engine", engine]).summary
    table, sessions, buffers = 128, 16 * 16, 16 * 2048
    assert demo["peak"]["bytes"] - empty["peak"]["bytes"] == table + sessions + buffers
    assert demo["peak"]["blocks"] - empty["peak"]["blocks"] == 1 + 16 + 16
    assert demo["live"]["bytes"] - empty["live"]["bytes"] == 8 * 2048
    assert demo["events"]["allocations"] - empty["events"]["allocations"] == 33


@pytest.mark.by_both_compilers
@pytest.mark.parametrize("how", ["exit", "_exit", "exec", "abort"])
def test_a_forked_child_neither_crashes_nor_writes_into_its_parents_events(
    runner: Runner, engine: str, how: str
) -> None:
    tracked = runner.run("forker", how, options=["--engine", engine])
    assert tracked.wait() == 0, tracked.stderr
    expected = {"exit": "300", "_exit": "300", "exec": "0", "abort": "6"}[how]
    assert re.findall(r"^child (\w+)$", tracked.stdout, re.MULTILINE) == [expected] * 3
    found = tracked.summary
    assert found["bad_frees"] == []
    assert not [site for site in found["call_sites"] if "child" in site.get("types", [])]
    (site,) = [site for site in found["call_sites"] if functions(site["backtrace"])[:1] == ["main"]]
    assert (site["blocks"], site["bytes"]) == (1, 64)
    empty = runner.run("load", 0, 8, 0, runner.folder / "load.txt", options=["--engine", engine]).summary
    assert found["events"]["allocations"] - empty["events"]["allocations"] == 2
    assert found["events"]["frees"] - empty["events"]["frees"] == 1


def test_a_forked_child_waits_for_nothing_that_another_thread_had_at_the_fork(runner: Runner, engine: str) -> None:
    tracked = runner.run("forker", "busy", options=["--engine", engine])
    assert tracked.wait() == 0, tracked.stderr
    assert "ended 100\n" in tracked.stdout


def test_reallocations_keep_one_block(runner: Runner, engine: str) -> None:
    tracked = runner.run("realloc", options=["--engine", engine])
    assert tracked.wait() == 0
    assert "0\n" not in tracked.stdout, "the program did not do what it was written for"
    own = sorted(
        site["bytes"]
        for site in tracked.summary["call_sites"]
        if {"main", "allocate"} & set(functions(site["backtrace"])[:2])
    )
    assert sum(own) == 6001 + 7002 + 3006 + 8003 + 5004 + 4005
    assert tracked.summary["bad_frees"] == []


def test_memzones_rings_and_mempools_are_no_leaks_once_freed(runner: Runner, engine: str) -> None:
    tracked = runner.run("memzones", options=["--engine", engine])
    assert tracked.wait() == 0
    own = [site for site in tracked.summary["call_sites"] if "main" in functions(site["backtrace"])]
    kept = [site for site in own if "memzone:kept_zone" in site["types"]]
    assert [site["blocks"] for site in kept] == [1]
    assert 12345 <= kept[0]["bytes"] < 12345 + 128
    assert not [
        site
        for site in own
        if re.search("ring|pool|mbufs|zone$|aligned|bounded", " ".join(site["types"])) and site not in kept
    ]
    assert tracked.summary["bad_frees"] == []


@pytest.mark.by_both_compilers
def test_dpdk_that_is_loaded_later_is_tracked_and_its_type_names_outlive_their_library(
    runner: Runner, engine: str
) -> None:
    tracked = runner.spawn("plugin_host", runner.program("plugin.so"), 5, options=["--engine", engine])
    tracked.wait_for("^unloaded$")
    os.kill(tracked.target, signal.SIGRTMIN)
    tracked.wait_for("SIGRTMIN: .* written to", "stderr")
    rows = {row.size: row for row in tracked.dump if row.type == "of the plugin"}
    assert sorted(rows) == [2000, 2001, 2002, 2003, 2004]
    assert all("plugin_allocate" in row.backtrace for row in rows.values())
    assert tracked.finish() == 0
    (bad,) = tracked.summary["bad_frees"]
    assert bad["kind"] == "duplicate"
    assert bad["allocated"]["type"] == "of the plugin"
    assert functions(bad["allocated"]["backtrace"])[0] == "plugin_allocate"
    assert functions(bad["backtrace"])[0] == "plugin_free"


def test_a_script_that_execs_the_program_still_gives_its_exit_status(runner: Runner, tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    script.write_text(f'#!/bin/sh\nexec "{runner.program("nasty")}" "$@"\n')
    script.chmod(0o755)
    tracked = runner.run(str(script), "status", 6)
    assert tracked.wait() == 6


def test_nothing_of_the_run_is_left_behind(runner: Runner) -> None:
    before = set(os.listdir("/dev/shm")) | {name for name in os.listdir("/tmp") if "frida" in name}
    tracked = runner.run("demo")
    assert tracked.wait() == 0
    eventually(lambda: not os.path.isdir(f"/proc/{tracked.summary['target']['pid']}"))
    after = set(os.listdir("/dev/shm")) | {name for name in os.listdir("/tmp") if "frida" in name}
    assert {name for name in after - before if str(tracked.pid) in name} == set()
