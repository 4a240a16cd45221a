"""Each bad free of the planted programs is reported: its kind, its number, its stacks, and nothing else."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from datetime import datetime
from typing import Any

import pytest
from tracked import Runner, Tracked, functions

TITLE = re.compile(r"^(\w+) free of address: (0x[0-9a-f]+)", re.MULTILINE)


def kinds(tracked: Tracked) -> list[str]:
    return [bad["kind"] for bad in tracked.summary["bad_frees"]]


def not_live(kind: str) -> bool:
    """Whether `kind` says that no block was at the address."""
    return kind in ("stray", "interior", "memzone", "foreign")


def options(engine: str) -> list[str]:
    return ["--engine", engine]


def test_rte_malloc_tracks_own_test_gives_a_duplicate_and_a_stray_free_although_it_crashes(
    runner: Runner, engine: str
) -> None:
    tracked = runner.run("rte_malloc_track_test", options=options(engine))
    assert tracked.wait() == 128 + signal.SIGSEGV
    duplicate, stray = tracked.summary["bad_frees"]
    assert duplicate["kind"] == "duplicate"
    assert duplicate["allocated"]["size"] == 100
    assert duplicate["allocated"]["type"] == "test"
    lines = [duplicate[key]["backtrace"][0]["line"] for key in ("allocated", "first_freed")]
    assert [*lines, duplicate["backtrace"][0]["line"]] == [6, 7, 8]
    assert not_live(stray["kind"])
    assert stray["address"] == "0x1"
    assert stray["backtrace"][0]["line"] == 9
    assert functions(stray["backtrace"])[0] == "main"
    assert stray["allocated"] is None
    assert stray["first_freed"] is None
    assert tracked.summary["target"]["signal"] == signal.SIGSEGV
    assert tracked.summary["target"]["exit_status"] is None
    assert f"Duplicate free of address: {duplicate['address']}" in tracked.stderr
    assert re.search(r"^(Stray|Foreign) free of address: 0x1\b", tracked.stderr, re.MULTILINE)


def test_the_demos_bugs_are_found_and_nothing_else(runner: Runner, engine: str) -> None:
    tracked = runner.run("demo", options=options(engine))
    assert tracked.wait() == 0
    assert tracked.stdout == "demo: done\n"
    found = tracked.summary
    by_kind = {bad["kind"]: bad for bad in found["bad_frees"]}
    assert len(found["bad_frees"]) == 2
    duplicate = by_kind.pop("duplicate")
    (stray,) = by_kind.values()
    assert not_live(stray["kind"])
    assert functions(stray["backtrace"])[:3] == ["buffer_trim", "table_run", "main"]
    assert functions(duplicate["backtrace"])[:3] == ["table_clear", "table_run", "main"]
    assert functions(duplicate["first_freed"]["backtrace"])[:3] == ["session_close", "table_run", "main"]
    assert functions(duplicate["allocated"]["backtrace"])[:3] == ["session_open", "table_run", "main"]
    assert duplicate["allocated"]["type"] == "session"
    leak = next(site for site in found["call_sites"] if functions(site["backtrace"])[0] == "buffer_new")
    assert (leak["blocks"], leak["bytes"]) == (8, 8 * 2048)
    assert functions(leak["backtrace"])[:4] == ["buffer_new", "session_open", "table_run", "main"]
    own = [site for site in found["call_sites"] if "table_run" in functions(site["backtrace"])]
    assert own == [leak]
    assert found["events"]["lost"] == 0


def test_duplicate_frees_of_several_threads_name_each_thread(runner: Runner, engine: str) -> None:
    tracked = runner.run("nasty", "duplicate-threads", options=options(engine))
    bad_frees = tracked.summary["bad_frees"]
    assert Counter(bad["kind"] for bad in bad_frees) == {"duplicate": 30}
    assert set(Counter(bad["address"] for bad in bad_frees).values()) == {3}
    assert Counter(bad["thread"] for bad in bad_frees).total() == 30
    for bad in bad_frees:
        assert functions(bad["backtrace"])[:2] == ["free_shared", "freeing_thread"]
        assert functions(bad["first_freed"]["backtrace"])[:2] == ["free_shared", "freeing_thread"]
        assert functions(bad["allocated"]["backtrace"])[:2] == ["duplicate_threads", "main"]
        assert bad["thread"].startswith("freeing")
        assert bad["first_freed"]["thread"].startswith("freeing")
        assert bad["first_freed"]["tid"] != bad["tid"]
        assert bad["allocated"]["thread"] == "nasty"
        assert 100 <= bad["allocated"]["size"] < 110
    assert tracked.wait() == 0


def test_a_reused_address_is_no_bad_free_until_its_second_life_is_freed_twice(runner: Runner, engine: str) -> None:
    tracked = runner.run("nasty", "reuse", options=options(engine))
    assert tracked.wait() == 0
    (bad,) = tracked.summary["bad_frees"]
    assert bad["kind"] == "duplicate"
    assert bad["allocated"]["type"] == "second life"
    assert bad["allocated"]["size"] == 64
    assert functions(bad["allocated"]["backtrace"])[:2] == ["second_life", "reuse"]
    assert functions(bad["first_freed"]["backtrace"])[:2] == ["end_second_life", "reuse"]
    assert functions(bad["backtrace"])[:2] == ["end_it_again", "reuse"]


@pytest.mark.by_both_compilers
def test_a_stray_free_that_crashes_the_program_is_reported(runner: Runner, engine: str) -> None:
    tracked = runner.run("nasty", "crash", options=options(engine))
    assert tracked.wait() == 128 + signal.SIGSEGV
    (bad,) = tracked.summary["bad_frees"]
    assert not_live(bad["kind"])
    assert bad["address"] == "0x1"
    assert functions(bad["backtrace"])[:2] == ["free_and_crash", "main"]
    assert [address for _, address in TITLE.findall(tracked.stderr)] == ["0x1"]


def test_ten_thousand_bad_frees_in_a_row_are_all_counted_but_not_all_printed(runner: Runner, engine: str) -> None:
    tracked = runner.run("nasty", "many", 10_000, options=options(engine))
    assert tracked.wait() == 0
    bad_frees = tracked.summary["bad_frees"]
    assert Counter(bad["kind"] for bad in bad_frees) == {"duplicate": 5_000, "stray": 5_000}
    assert len({(bad["kind"], bad["address"]) for bad in bad_frees}) == 2
    assert [bad["kind"] for bad in bad_frees[:4]] == ["duplicate", "stray", "duplicate", "stray"]
    assert all(functions(bad["backtrace"])[:2] == ["many", "main"] for bad in bad_frees)
    assert len(tracked.stderr) < 1_000_000
    assert re.search(r"10,000 bad frees", tracked.stderr)


@pytest.mark.parametrize(
    "program", [["nasty", "null"], ["nasty", "short-lived-threads", "100"], ["memzones"], ["realloc"]], ids=" ".join
)
def test_no_bad_free_is_invented(runner: Runner, engine: str, program: list[str]) -> None:
    tracked = runner.run(*program, options=options(engine))
    assert tracked.wait() == 0
    assert tracked.summary["bad_frees"] == []
    assert TITLE.search(tracked.stderr) is None


def test_a_bad_free_is_told_within_a_tenth_of_a_second(runner: Runner, engine: str) -> None:
    tracked = runner.spawn("waiter", options=options(engine))
    tracked.wait_for("^ready$")
    delays = []
    for number in range(1, 6):
        asked = time.monotonic()
        tracked.tell("bad")
        again = rf"^rtetrack-frida: bad free 1 again, with the same stacks: {number} times"
        tracked.wait_for(r"^Duplicate free of address: .*\(bad free 1\b" if number == 1 else again, "stderr")
        delays.append(time.monotonic() - asked)
    assert min(delays) < 0.1, delays
    assert tracked.finish() == 0


def test_the_report_names_kind_stacks_size_type_and_thread(runner: Runner, engine: str) -> None:
    tracked = runner.run("nasty", "duplicate-then-wait", options=options(engine))
    report = tracked.stderr[tracked.stderr.index("Duplicate free") :]
    report = report[: report.index("---- rtetrack-frida")]
    for text in (
        "64 bytes",
        "of type waiting",
        "(nasty)",
        "duplicate_then_wait",
        "nasty.c:",
        "First freed",
        "Allocated",
    ):
        assert text in report
    assert report.count("#0 ") == 3
    assert tracked.stdout == "freed\n"


def test_a_bad_free_writes_the_dump_unless_told_not_to(runner: Runner) -> None:
    tracked = runner.run("demo")
    assert sum(row.type == "reassembly buffer" for row in tracked.dump) >= 8
    tracked.dump_path.unlink()
    tracked = runner.run("demo", options=["--no-dump-on-bad-free"])
    assert not tracked.dump_path.exists()
    assert len(tracked.summary["bad_frees"]) == 2


def test_quiet_still_tells_bad_frees_and_nothing_else(runner: Runner) -> None:
    tracked = runner.run("demo", options=["--quiet"])
    told = [line for line in tracked.stderr.splitlines() if not line.startswith("EAL:")]
    assert [kind for kind, _ in TITLE.findall(tracked.stderr)][1:] == ["Duplicate"]
    assert "rtetrack-frida" not in "\n".join(told)


def test_without_backtraces_bad_frees_are_found_all_the_same(runner: Runner, engine: str) -> None:
    tracked = runner.run("demo", options=[*options(engine), "--no-backtrace"])
    bad_frees: list[dict[str, Any]] = tracked.summary["bad_frees"]
    assert len(bad_frees) == 2
    assert all(bad["backtrace"] == [] for bad in bad_frees)


def test_without_free_backtraces_the_allocations_are_still_there(runner: Runner, engine: str) -> None:
    tracked = runner.run("demo", options=[*options(engine), "--no-free-backtrace"])
    duplicate = next(bad for bad in tracked.summary["bad_frees"] if bad["kind"] == "duplicate")
    assert duplicate["backtrace"] == []
    assert functions(duplicate["allocated"]["backtrace"])[0] == "session_open"


def test_max_frames_cuts_a_stack_at_its_outer_end(runner: Runner, engine: str) -> None:
    tracked = runner.run("demo", options=[*options(engine), "--max-frames", 2])
    duplicate = next(bad for bad in tracked.summary["bad_frees"] if bad["kind"] == "duplicate")
    addresses = {frame["address"] for frame in duplicate["backtrace"]}
    assert len(addresses) == 2
    assert functions(duplicate["backtrace"])[:2] == ["table_clear", "table_run"]


def test_times_are_those_of_the_program_to_a_millisecond(runner: Runner, engine: str) -> None:
    waits = [0, 1, 2, 5, 20, 50, 100, 400]
    began = time.time()
    tracked = runner.run("waits", *map(str, waits), options=options(engine))
    assert tracked.wait() == 0
    found = tracked.summary["bad_frees"]
    assert [bad["kind"] for bad in found] == ["duplicate"] * len(waits)
    for bad, line in zip(found, tracked.stdout.splitlines(), strict=True):
        bounds = [int(word) / 1e9 for word in line.split()]
        between = [bad["time"] - bad[earlier]["time"] for earlier in ("first_freed", "allocated")]
        for seconds, least, most in zip(between, bounds[::2], bounds[1::2], strict=True):
            assert least - 0.001 < seconds < most + 0.001
    started = datetime.fromisoformat(tracked.summary["started"]).timestamp()
    assert began <= started <= time.time()
    assert 0 < found[0]["time"] < time.time() - started


def test_the_free_that_took_a_block_from_its_next_owner_is_the_suspect(runner: Runner) -> None:
    tracked = runner.run("badfrees", "recycled")
    (bad,) = tracked.summary["bad_frees"]
    assert bad["kind"] == "duplicate"
    assert functions(bad["backtrace"])[0] == "second_owner_frees"
    assert functions(bad["first_freed"]["backtrace"])[0] == "first_owner_frees"
    assert functions(bad["allocated"]["backtrace"])[0] == "second_owner_takes"
    (earlier,) = bad["earlier"]
    assert earlier["suspect"]
    assert earlier["type"] == "first's"
    assert functions(earlier["backtrace"])[0] == "free_a_recycled_address"
    assert functions(earlier["freed"]["backtrace"])[0] == "first_owner_frees"
    assert earlier["freed"]["time"] <= bad["first_freed"]["time"] + 0.01
    assert "Suspect its first free" in tracked.stderr
    assert "Before that the address was that of a block of type first's" in tracked.stderr
