"""What the tool claims is true on programs of every build, and DPDK's own heap is the witness."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tracked import Accusations, Runner, eventually, foreign_mappings, functions

from frida_rtetrack import Host, Options
from frida_rtetrack.errors import NoSuchProcess
from frida_rtetrack.target import process as process_of

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("RTETRACK_TEST_ROUNDS", "5"))

PLANTED = [
    # what, kind, what the detail must say, the type of the block that is named with it
    ("duplicate_field", "duplicate", "already freed", "queue"),
    ("two_threads", "duplicate", "already freed", "queue"),
    ("interior", "interior", "1,024 bytes inside of a live block of 4,096 bytes of type block", "block"),
    ("libc", "foreign", r"in libc's heap", None),
    ("stack", "foreign", r"on the (main thread's )?stack", None),
    ("global", "foreign", r"in badfrees\+0x[0-9a-f]+", None),
    ("unmapped", "foreign", "unmapped", None),
    ("null_page", "foreign", "NULL page", None),
    ("stray", "stray", "No block starts at this address of DPDK's heap", None),
    ("memzone", "memzone", "memzone a_zone", "memzone:a_zone"),
    ("mempool", "memzone", "mempool a_pool.*rte_mempool_put", "memzone:MP_a_pool"),
    ("after_cleanup", "after_cleanup", "rte_eal_cleanup", "block"),
]


@pytest.mark.parametrize(("what", "kind", "detail", "block"), PLANTED, ids=[row[0] for row in PLANTED])
def test_a_planted_bad_free_is_told_apart_by_evidence(
    runner: Runner, engine: str, what: str, kind: str, detail: str, block: str | None
) -> None:
    tracked = runner.run("badfrees", what, options=["--engine", engine])
    status = tracked.wait()
    assert status in ((0,) if what not in ("unmapped", "null_page", "after_cleanup") else (0, 139)), tracked.stderr
    (bad,) = tracked.summary["bad_frees"]
    assert bad["kind"] == kind
    assert re.search(detail, bad["detail"]), bad["detail"]
    assert (bad["allocated"] and bad["allocated"]["type"].split("_0")[0]) == block
    assert bad["function"] == "rte_free"
    word = "Duplicate" if kind == "duplicate" else "Stray"
    assert f"{word} free of address: {bad['address']}" in tracked.stderr


def test_the_stacks_of_a_double_free_in_an_uninit_path_name_the_lines(runner: Runner, engine: str) -> None:
    tracked = runner.run("badfrees", "duplicate_field", options=["--engine", engine])
    assert tracked.wait() == 0
    (bad,) = tracked.summary["bad_frees"]
    assert functions(bad["backtrace"])[:2] == ["uninit", "main"]
    assert functions(bad["first_freed"]["backtrace"])[:2] == ["uninit", "main"]
    assert functions(bad["allocated"]["backtrace"])[0] == "main"
    assert bad["backtrace"][0]["line"] == bad["first_freed"]["backtrace"][0]["line"] + 2


def test_two_threads_that_free_one_queue_are_both_named(runner: Runner, engine: str) -> None:
    tracked = runner.run("badfrees", "two_threads", options=["--engine", engine])
    assert tracked.wait() == 0
    (bad,) = tracked.summary["bad_frees"]
    assert len({bad["tid"], bad["first_freed"]["tid"], bad["allocated"]["tid"]}) == 3


def test_what_is_not_freed_at_cleanup_is_the_leak_report(runner: Runner, engine: str) -> None:
    tracked = runner.run("badfrees", "leak", options=["--engine", engine, "--verify"])
    assert tracked.wait() == 0
    leaks = tracked.summary["leaks"]
    assert (leaks["blocks"], leaks["bytes"]) == (3, 900)
    assert leaks["eal"]["blocks"] > 0
    (site,) = leaks["call_sites"]
    assert (site["types"], functions(site["backtrace"])[:2]) == (["leaked"], ["leak_a_block", "main"])
    assert tracked.summary["verify"] == {"missing": [], "unexpected": []}
    assert tracked.summary["bad_frees"] == []


def test_a_program_that_frees_everything_has_no_leaks(runner: Runner, engine: str) -> None:
    tracked = runner.run("badfrees", "clean", options=["--engine", engine])
    assert tracked.wait() == 0
    assert tracked.summary["leaks"]["blocks"] == 0
    assert "everything was freed" in tracked.stderr


def essence(summary: dict[str, Any]) -> dict[str, Any]:
    """What must be the same whatever way DPDK came into the program."""
    sites = sorted((site["bytes"], site["blocks"], site["types"]) for site in summary["call_sites"])
    bad = [(each["kind"], each["function"]) for each in summary["bad_frees"]]
    return {key: summary[key] for key in ("live", "peak", "memzones", "verify")} | {"sites": sites, "bad": bad}


@pytest.mark.by_both_compilers
@pytest.mark.parametrize("program", ["realloc", "memzones"])
@pytest.mark.parametrize("ways", [("near",), ("far", "attach"), ("attach",)], ids=["near", "far", "attach"])
def test_every_way_to_hook_a_function_sees_the_same(
    runner: Runner, programs: Path, program: str, ways: tuple[str, ...]
) -> None:
    found = []
    for options in (Options(verify=True), Options(verify=True, hook_ways=ways)):
        with Host.spawn([str(programs / program)], options) as host:
            assert host.wait(60)
        found.append(host.summary())
    assert {hook["how"] for hook in host.hooks} <= set(ways)
    usual, other = (essence(each.as_json()) for each in found)
    assert other == usual
    assert other["verify"] == {"missing": [], "unexpected": []}
    stacks = [
        [[frame.function for frame in site.stack.frames] for site in each.call_sites if site.stack] for each in found
    ]
    assert sorted(map(str, stacks[0])) == sorted(map(str, stacks[1]))


@pytest.mark.parametrize("program", ["realloc", "memzones"])
@pytest.mark.parametrize("build", ["static", "static-clang", "debuglink"])
def test_dpdk_linked_in_statically_gives_the_same_as_shared(
    runner: Runner, engine: str, program: str, build: str
) -> None:
    if not Path(runner.program(f"{program}-{build}")).is_file():
        pytest.skip("clang is not installed")
    options = ["--engine", engine, "--verify"]
    shared, linked = (runner.run(name, options=options) for name in (program, f"{program}-{build}"))
    assert shared.wait() == linked.wait()
    assert shared.summary["verify"] == {"missing": [], "unexpected": []}
    assert essence(linked.summary) == essence(shared.summary)


@pytest.mark.parametrize("build", ["dpdk-clang", "dpdk-gcc-lto"])
@pytest.mark.parametrize("program", ["realloc", "memzones"])
def test_dpdk_built_by_clang_or_with_link_time_optimization_gives_the_same_as_shared(
    runner: Runner, engine: str, program: str, build: str
) -> None:
    """Clang's rte_zmalloc_socket does not call rte_malloc_socket; LTO leaves few of the functions to be called at all."""
    if not Path(runner.program(f"{program}-{build}")).is_file():
        pytest.skip("DPDK's source could not be fetched here, or clang is not installed")
    options = ["--engine", engine, "--verify"]
    shared, linked = (runner.run(name, options=options) for name in (program, f"{program}-{build}"))
    assert shared.wait() == linked.wait() == 0
    assert linked.summary["verify"] == {"missing": [], "unexpected": []}
    assert linked.summary["events"] == shared.summary["events"]
    assert linked.summary["bad_frees"] == []
    assert linked.summary["live"]["blocks"] == shared.summary["live"]["blocks"]
    if build == "dpdk-clang":
        assert essence(linked.summary) == essence(shared.summary)


@pytest.mark.parametrize("build", ["dpdk-clang", "dpdk-gcc-lto"])
@pytest.mark.parametrize("what", ["duplicate_field", "two_threads", "interior", "stray", "global"])
def test_a_bad_free_is_found_in_dpdk_built_by_clang_or_with_link_time_optimization(
    runner: Runner, engine: str, what: str, build: str
) -> None:
    if not Path(runner.program(f"badfrees-{build}")).is_file():
        pytest.skip("DPDK's source could not be fetched here, or clang is not installed")
    tracked = runner.run(f"badfrees-{build}", what, options=["--engine", engine])
    assert [bad["kind"] for bad in tracked.summary["bad_frees"]] == [{row[0]: row[1] for row in PLANTED}[what]]


def test_a_stripped_static_program_says_what_to_do_and_works_with_symbol(runner: Runner, engine: str) -> None:
    stripped = runner.program("realloc-stripped")
    tracked = runner.run("realloc-stripped", options=["--engine", engine])
    tracked.wait()
    assert "--symbol" in tracked.stderr
    names = subprocess.run(["nm", runner.program("realloc-static")], capture_output=True, text=True, check=True).stdout
    wanted = (
        "rte_malloc",
        "rte_zmalloc",
        "rte_calloc",
        "rte_malloc_socket",
        "rte_zmalloc_socket",
        "rte_realloc",
        "rte_free",
    )
    symbols = []
    for address, name in re.findall(r"^([0-9a-f]+) [tT] (\w+)$", names, re.MULTILINE):
        if name in (*wanted, "rte_realloc_socket", "rte_calloc_socket", "rte_malloc_dump_heaps"):
            symbols += ["--symbol", f"{name}={stripped}+0x{address}"]
    told = runner.run("realloc-stripped", options=["--engine", engine, "--verify", *symbols])
    shared = runner.run("realloc", options=["--engine", engine])
    told.wait(), shared.wait()
    assert told.summary["live"] == shared.summary["live"]
    assert told.summary["verify"] == {"missing": [], "unexpected": []}


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_attaching_under_full_load_takes_a_right_baseline_every_time(runner: Runner, engine: str) -> None:
    load = runner.start_load(2, seconds=600)
    for _ in range(ROUNDS if engine == "native" else 3):
        observer = Accusations()
        with Host.attach(load.pid, Options(engine=engine, dump_on_bad_free=False), observer) as host:
            host.wait(0.2)
            difference = host.verify()
            assert difference is not None
            assert not difference, difference
        assert observer.said == []
        assert host.lost == 0
    assert load.process.alive


@pytest.mark.by_both_compilers
def test_forked_children_are_followed_when_asked_for(runner: Runner, engine: str) -> None:
    tracked = runner.run("forker", "exit", options=["--engine", engine, "--follow-fork", "--verify"])
    assert tracked.summary["damage"] == {}  # a child that was just ending when it was looked at is none
    assert tracked.wait() == 0
    found = tracked.summary
    assert [bad["kind"] for bad in found["bad_frees"]] == ["duplicate"] * 3
    assert len({bad["tid"] for bad in found["bad_frees"]}) == 3
    assert all(functions(bad["backtrace"])[0] == "child" for bad in found["bad_frees"])
    assert found["verify"] == {"missing": [], "unexpected": []}


@pytest.mark.by_both_compilers
def test_the_heap_of_a_daemon_is_compared_by_the_daemon_and_not_by_its_parent_that_never_had_it(runner: Runner) -> None:
    tracked = runner.run("forker", "daemon", options=["--follow-fork", "--verify"])
    assert tracked.wait() == 0
    found = tracked.summary
    assert found["verify"] == {"missing": [], "unexpected": []}
    assert "The heap was not verified at the end" not in tracked.stderr
    assert found["bad_frees"] == []
    assert found["leaks"]["blocks"] == 7
    assert found["leaks"]["eal"]["blocks"] > 0


LAUNCHERS = {
    "exec": '#!/bin/sh\nexec nice "$@"\n',
    "child": '#!/bin/bash\nls / > /dev/null\n"$@" | cat\nexit ${PIPESTATUS[0]}\n',
    "background": '#!/bin/bash\n(sleep 1; exec "$@") &\n',
    "vfork": "#!/usr/bin/env python3\nimport subprocess, sys\nsys.exit(subprocess.run(sys.argv[1:]).returncode)\n",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_program_that_a_launcher_executes_is_tracked_from_its_start(
    runner: Runner, engine: str, launcher: str, tmp_path: Path
) -> None:
    script = tmp_path / "launcher"
    script.write_text(LAUNCHERS[launcher])
    script.chmod(0o755)
    options = ["--engine", engine, "--verify"]
    direct = runner.run("realloc", options=options)
    launched = runner.run(str(script), runner.program("realloc"), options=[*options, "--follow-fork"])
    assert direct.wait() == launched.wait() == 0
    assert essence(launched.summary) == essence(direct.summary)
    assert "Traceback" not in launched.stderr


@pytest.mark.parametrize("how", ["executes", "only forks"])
def test_ctrl_c_reaches_what_a_launcher_left_behind_or_ends_the_waiting_for_it(
    runner: Runner, how: str, tmp_path: Path
) -> None:
    script = tmp_path / "launcher"
    script.write_text(
        f"#!{sys.executable}\nimport os, subprocess, sys, time\n"
        "if sys.argv[1:]:\n    left = subprocess.Popen(sys.argv[1:]).pid\n"
        "else:\n    left = os.fork()\n    if left == 0:\n        time.sleep(100)\n"
        "print('left behind', left, 'by', os.getpid(), flush=True)\nos._exit(0)\n"
    )
    script.chmod(0o755)
    words, options = ([runner.program("waiter")], []) if how == "executes" else ([], ["--allow-no-dpdk"])
    tracked = runner.spawn(str(script), *words, options=["--follow-fork", *options])
    left, launcher = map(int, tracked.wait_for(r"^left behind (\d+) by (\d+)$").groups())
    if how == "executes":
        tracked.wait_for("^ready$")
    eventually(lambda: not Path(f"/proc/{launcher}/exe").exists())
    time.sleep(0.5)
    assert tracked.alive
    tracked.send_signal(signal.SIGINT)
    assert tracked.finish() == 0, tracked.stderr
    if how == "only forks":  # it was never ours to signal
        os.kill(left, signal.SIGKILL)
    eventually(lambda: not Path(f"/proc/{left}/exe").exists())


def test_a_launcher_that_starts_what_cannot_be_joined_says_so_and_lets_it_run(runner: Runner) -> None:
    tracked = runner.spawn("/bin/nice", runner.program("static_sleeper"), options=["--follow-fork"])
    tracked.wait_for("^ready$")
    tracked.send_signal(signal.SIGTERM)
    tracked.finish()
    assert "is fully static" in tracked.stderr


PAIR_WORDS = ("-m", "64", "--no-pci", "--no-telemetry", "--file-prefix", f"pair{os.getpid()}", "--log-level", "error")


def start_pair(runner: Runner) -> list[Any]:
    pair = []
    for role in ("primary", "secondary"):
        pair.append(runner.start("shared", *PAIR_WORDS, f"--proc-type={role}"))
        pair[-1].wait_for("^ready$")
    return pair


@pytest.mark.parametrize("first_to_leave", [0, 1])
def test_blocks_of_a_primary_and_its_secondary_are_one_heap(
    runner: Runner, hugepages: None, first_to_leave: int
) -> None:
    pair = start_pair(runner)
    observer = Accusations()
    with Host.attach([process.pid for process in pair], Options(dump_on_bad_free=False), observer) as host:
        before = host.tracking.live_blocks
        for process in pair:
            process.tell("")
        for process in pair:
            process.wait_for("^done$")
        host.sync()
        assert (host.tracking.totals.allocations, host.tracking.totals.frees) == (200, 200)
        assert host.tracking.live_blocks == before
        assert host.verify() is not None
        assert not host.verified
        pair[first_to_leave].finish()
        assert not host.wait(0.3)
        pair[1 - first_to_leave].finish()
        assert host.wait(10)
    assert observer.said == []


def test_what_lived_before_a_secondary_was_spawned_beside_its_tracked_primary_is_known(
    runner: Runner, hugepages: None
) -> None:
    primary = runner.start("shared", *PAIR_WORDS, "--proc-type=primary")
    primary.wait_for("^ready$")
    words = [*PAIR_WORDS, "--proc-type=secondary"]
    tracked = runner.spawn("shared", *words, options=["--also-attach", primary.pid, "--verify"])
    tracked.wait_for("^ready$")
    for process in (tracked, primary):
        process.tell("")
    for process in (tracked, primary):
        process.wait_for("^done$")
    primary.tell("")  # frees a memzone that is older than the tracking
    assert primary.finish() == 0
    tracked.tell("")
    assert tracked.finish() == 0, tracked.stderr
    assert tracked.summary["bad_frees"] == []


def ended(pid: int) -> bool:
    try:
        return process_of.state(pid) == "Z"
    except NoSuchProcess:
        return True


@pytest.mark.parametrize("how", ["SIGINT", "the primary's end"])
def test_a_host_whose_spawned_secondary_has_ended_is_ended_by_a_signal_and_by_its_primary(
    runner: Runner, hugepages: None, how: str
) -> None:
    primary = runner.start("shared", *PAIR_WORDS, "--proc-type=primary")
    primary.wait_for("^ready$")
    tracked = runner.spawn("shared", *PAIR_WORDS, "--proc-type=secondary", options=["--also-attach", primary.pid])
    tracked.wait_for("^ready$")
    secondary = tracked.target
    for process in (tracked, primary):
        process.tell("")
    for process in (tracked, primary):
        process.wait_for("^done$")
    tracked.tell("")
    eventually(lambda: ended(secondary))
    time.sleep(0.5)
    assert tracked.alive, tracked.stderr  # its primary is tracked still
    begun = time.monotonic()
    if how == "SIGINT":
        tracked.send_signal(signal.SIGINT)
    else:
        primary.tell("")
        assert primary.finish() == 0
    assert tracked.wait() == 0, tracked.stderr
    assert time.monotonic() - begun < 2.5
    assert "Traceback" not in tracked.stderr
    assert tracked.summary["bad_frees"] == []
    if how == "SIGINT":
        assert primary.alive
        eventually(lambda: not foreign_mappings(primary.pid))
        primary.tell("")
        assert primary.finish() == 0


def test_a_free_of_another_processs_block_is_no_accusation(runner: Runner, hugepages: None) -> None:
    pair = start_pair(runner)
    observer = Accusations()
    with Host.attach(pair[1].pid, Options(dump_on_bad_free=False), observer) as host:
        for process in pair:
            process.tell("")
        for process in pair:
            process.wait_for("^done$")
        host.sync()
    (said,) = observer.said
    assert "allocated by another process" in said
    assert str(pair[0].pid) in said
    assert host.bad_frees == []
    for process in pair:
        process.finish()


@pytest.mark.alone
def test_processes_of_different_heaps_are_not_taken_for_one(runner: Runner) -> None:
    first, second = (runner.start_load(1) for _ in range(2))
    tracked = runner.attach(first.pid, options=[second.pid], wait=False)
    assert tracked.wait() == 125
    assert "do not share one DPDK heap" in tracked.stderr


@pytest.mark.parametrize("name", ["malloc", "ring", "memzone", "hash", "mempool"])
def test_dpdks_own_autotest_ends_as_it_does_bare_without_a_false_report(name: str) -> None:
    command = [sys.executable, str(ROOT / "tests" / "autotests" / "run.py"), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
