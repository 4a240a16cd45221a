"""What makes a run fail in a CI, and what a suppression passes over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import pytest
from click.testing import CliRunner

from frida_rtetrack.commands.leakkinds import leak_kinds
from frida_rtetrack.commands.optionalvalue import OptionalValue
from frida_rtetrack.errors import BadUsage
from frida_rtetrack.options import LeakKind
from frida_rtetrack.reports.cigate import Gate, Suppression, read_suppressions, suppressions_for
from frida_rtetrack.reports.growth import MOMENTS, Curves, Growing
from frida_rtetrack.reports.leakcheck import LeakCheck
from frida_rtetrack.reports.lost import LostReport, Share
from frida_rtetrack.reports.summary import CallSite, Leaks, Start, Summary
from frida_rtetrack.symbols.names import Stack
from frida_rtetrack.symbols.symbolizer import Frame
from frida_rtetrack.target.target import Ending
from frida_rtetrack.tracking.heap import HeapDifference


def frame(function: str | None, module: str = "app", file: str | None = None) -> Frame:
    return Frame(0, module, 0, function, None, file, None, False)


def stack(*functions: str) -> Stack:
    return Stack(tuple(frame(function) for function in functions), None)


def bad_free(where: Stack | None) -> Any:
    return cast("Any", type("Report", (), {"stack": where}))


def run(**changes: Any) -> Summary:
    clean = Summary(
        names=cast("Any", None), start=Start.now(), version="1", engine="native", compiler="", hooks=15, pid=1, argv=(),
        ending=Ending(0, None, "exited"), allocations=0, frees=0, resizes=0, failed=0, lost=0, allocated_bytes=0,
        live_blocks=0, live_bytes=0, peak_blocks=0, peak_bytes=1000, bad_frees=(), bad_frees_not_kept=0, call_sites=(),
        memzones=(0, 0), leaks=None, verified=None,
    )  # fmt: skip
    return replace(clean, **changes)


def leaks(*sites: tuple[int, Stack]) -> Leaks:
    kept = tuple(CallSite(blocks, 64 * blocks, 0, where, ("t",)) for blocks, where in sites)
    return Leaks(sum(site.blocks for site in kept), sum(site.size_bytes for site in kept), 3, 300, kept)


@pytest.mark.parametrize(
    ("pattern", "function", "matches"),
    [
        ("flow", "create_flow_table", True),
        ("^flow", "create_flow_table", False),
        ("^create*table$", "create_flow_table", True),
        ("create*tab$", "create_flow_table", False),
        ("a.b", "a_b", False),
        ("operator*", "operator new(unsigned long)", True),
    ],
)
def test_patterns_are_read_as_leak_sanitizer_reads_them(pattern: str, function: str, matches: bool) -> None:
    assert Suppression("leak", pattern).matches(stack("inner", function, "main")) is matches


def test_modules_and_source_files_are_named_too() -> None:
    where = Stack((frame(None, "libvendor.so.1"), frame("main", "app", "src/flow.c")), None)
    assert Suppression("leak", "libvendor.so").matches(where)
    assert Suppression("leak", "flow.c").matches(where)
    assert not Suppression("leak", "other.c").matches(where)
    assert not Suppression("leak", "main").matches(None)


def test_bad_frees_fail_a_run_unless_suppressed_and_those_not_kept_cannot_be() -> None:
    found = run(bad_frees=(bad_free(stack("close_port")), bad_free(stack("quit"))))
    assert Gate().failures(run()) == []
    assert Gate().failures(found) == ["2 bad frees."]
    one = Gate(suppressions=[Suppression("badfree", "close_port"), Suppression("leak", "quit")])
    assert one.failures(found) == ["1 bad free."]
    assert one.unused() == []  # leaks were not looked for
    both = Gate(suppressions=[Suppression("badfree", "close_port"), Suppression("badfree", "quit")])
    assert both.failures(found) == []
    assert Gate(suppressions=both.suppressions).failures(replace(found, bad_frees_not_kept=5)) == ["5 bad frees."]


def test_leaks_fail_a_run_where_they_are_looked_for() -> None:
    found = run(leaks=leaks((2, stack("open_port")), (1, stack("parse"))))
    assert Gate().failures(found) == []
    assert Gate(leak_check={LeakKind.ALL}).failures(found) == ["192 bytes in 3 blocks leaked."]
    gate = Gate(
        leak_check={LeakKind.ALL}, suppressions=[Suppression("leak", "open_port"), Suppression("leak", "nothing")]
    )
    assert gate.failures(found) == ["64 bytes in 1 block leaked."]
    assert [str(each) for each in gate.unused()] == ["leak:nothing"]
    assert Gate(leak_check={LeakKind.ALL}).failures(run(leaks=leaks())) == []


def test_a_leak_check_of_a_program_that_never_cleaned_up_does_not_pass_on_nothing() -> None:
    (failure,) = Gate(leak_check={LeakKind.ALL}).failures(run())
    assert "never called rte_eal_cleanup" in failure


def lost(direct: Leaks, indirect: Leaks) -> LeakCheck:
    shares = [Share(each.blocks, each.size_bytes, each.call_sites) for each in (direct, indirect)]
    found = LostReport(
        lost=shares[0],
        indirectly_lost=shares[1],
        at_ns=0,
        held=1,
        eal=1,
        complete=True,
        looks=1,
        seconds=0,
        read_bytes=0,
        unseen_threads=0,
        longest_stop_s=0,
    )
    return LeakCheck(frozenset({LeakKind.LOST}), found)


def test_what_is_lost_with_a_suppressed_block_goes_with_it() -> None:
    found = run(leak_check=lost(leaks((1, stack("open_port"))), leaks((2, stack("open_queue")))))
    (failure,) = Gate({LeakKind.LOST}).failures(found)
    assert "64 bytes in 1 block lost" in failure and "by them 128 bytes in 2 blocks" in failure
    assert Gate({LeakKind.LOST}, suppressions=[Suppression("leak", "open_port")]).failures(found) == []
    assert Gate({LeakKind.LOST}, suppressions=[Suppression("leak", "open_queue")]).failures(found) != []
    of_eal = run(leak_check=lost(leaks(), leaks((2, stack("open_queue")))))
    assert len(Gate({LeakKind.LOST}).failures(of_eal)) == 1
    assert Gate({LeakKind.LOST}).failures(run(leak_check=lost(leaks(), leaks()))) == []


def test_what_grows_fails_a_run_and_what_cannot_be_told_is_no_pass() -> None:
    site = Growing(stack("learn"), (0, 64, 128), 2, 128, 128, 1.0)
    found = run(leak_check=LeakCheck(frozenset({LeakKind.GROWING}), growing=(site,)))
    assert Gate({LeakKind.GROWING}).failures(found) == ["1 call site grew without an end, by 128 bytes."]
    assert Gate({LeakKind.GROWING}, suppressions=[Suppression("leak", "learn")]).failures(found) == []
    assert list(suppressions_for(found)) == ["leak:^learn$"]
    untold = run(leak_check=LeakCheck(frozenset({LeakKind.GROWING}), not_told=("Too short.",)))
    assert Gate({LeakKind.GROWING}).failures(untold) == ["Too short."]


def test_curves_that_are_kept_bounded_tell_the_same_growth() -> None:
    whole, bounded, period = Curves(), Curves(), 1
    for moment in range(1000):
        sites = np.array(
            [(1, moment, 64 * moment), (2, moment % 3 + 1, 8)], [("stack", "u4"), ("blocks", "u8"), ("bytes", "u8")]
        )
        whole.add(moment * 1_000_000, sites)
        if moment % period == 0 or moment == 999:
            bounded.add(moment * 1_000_000, sites)
        if len(bounded.at_ns) >= 2 * MOMENTS:
            bounded.thin_out()
            period *= 2
    names = cast("Any", type("Names", (), {"stack": lambda self, number: stack(f"site{number}")})())
    (one,), (other,) = whole.growing(names), bounded.evenly_spread().growing(names)
    assert len(other.curve) <= MOMENTS and other.stack == one.stack == stack("site1")
    assert (other.blocks, other.size_bytes) == (one.blocks, one.size_bytes) == (999, 64 * 999)
    assert abs(other.grown_bytes - one.grown_bytes) < 64 * 50


def test_a_run_in_which_nothing_was_tracked_does_not_pass() -> None:
    assert Gate().failures(run(hooks=0)) == ["Nothing was tracked."]


def test_the_high_watermark_and_the_comparison_with_the_heap_fail_a_run() -> None:
    assert Gate(max_bytes=1000).failures(run()) == []
    assert Gate(max_bytes=999).failures(run()) == ["1,000 bytes were live at the most, 999 are allowed."]
    differs = HeapDifference(cast("Any", (object(),)), (), busy=1)
    assert Gate().failures(run(verified=differs)) == ["The live set differs from DPDK's own heap."]


def test_what_is_printed_suppresses_all_that_was_found(tmp_path: Path) -> None:
    dpdk = Stack((frame("rte_hash_create", "librte_hash.so.23"), frame("open*port"), frame("main")), None)
    found = run(leaks=leaks((2, dpdk), (1, dpdk)), bad_frees=(bad_free(stack("quit")), bad_free(None)))
    lines = list(suppressions_for(found))
    assert lines == ["badfree:^quit$", "leak:^open*port$"]
    path = tmp_path / "suppressions"
    path.write_bytes(b"# known\r\n\n  " + "\r\n".join(lines).encode() + b"  ")
    gate = Gate(leak_check={LeakKind.ALL}, suppressions=read_suppressions(path))
    assert gate.failures(replace(found, bad_frees=found.bad_frees[:1])) == []


def test_what_is_printed_names_the_programs_own_code_never_what_every_stack_passes_through() -> None:
    stripped = (
        frame("rte_eth_rx_queue_setup", "librte_ethdev.so.23"),
        frame(None, "libvendor.so.1"),
        frame("__libc_start_main", "libc.so.6"),
    )
    linked_in = (frame("rte_zmalloc_socket"), frame("flow_new"), frame("main"), frame("_start"))
    only_dpdk = (frame("rte_ring_create", "librte_ring.so.23"), frame("start_thread", "libc.so.6"))
    found = run(leaks=leaks(*((1, Stack(frames, None)) for frames in (stripped, linked_in, only_dpdk))))
    assert list(suppressions_for(found)) == ["leak:^libvendor.so.1$", "leak:^flow_new$", "leak:^rte_ring_create$"]


def test_a_module_is_named_by_its_path_as_with_leak_sanitizer_or_by_its_name() -> None:
    where = Stack((replace(frame("f", "libv.so.1"), module_path="/opt/vendor/libv.so.1"),), None)
    assert Suppression("leak", "^/opt/vendor/*").matches(where)
    assert Suppression("leak", "^libv.so").matches(where)
    assert not Suppression("leak", "^vendor").matches(where)


@pytest.mark.parametrize("line", ["leak", "leak:", "race:main", "main"])
def test_a_line_that_is_no_suppression_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "suppressions"
    path.write_text(f"leak:fine\n{line}\n")
    with pytest.raises(BadUsage, match="Line 2 of"):
        read_suppressions(path)
    with pytest.raises(BadUsage, match="cannot be read"):
        read_suppressions(tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "kinds", "program"),
    [
        (["./app"], None, ("./app",)),
        (["--leak-check", "./app", "--leak-check=full"], {LeakKind.ALL}, ("./app", "--leak-check=full")),
        (["--leak-check=lost", "lost"], {LeakKind.LOST}, ("lost",)),
        (["--leak-check=growing,lost", "--", "--leak-check"], {LeakKind.LOST, LeakKind.GROWING}, ("--leak-check",)),
    ],
)
def test_the_program_is_never_taken_for_the_kind_of_leak(
    words: list[str], kinds: set[LeakKind] | None, program: tuple[str, ...]
) -> None:
    told: list[Any] = []

    @click.command(context_settings={"allow_interspersed_args": False})
    @click.option("--leak-check", cls=OptionalValue, bare="all", type=leak_kinds)
    @click.argument("program", nargs=-1, type=click.UNPROCESSED)
    def command(**given: Any) -> None:
        told.append((given["leak_check"], given["program"]))

    assert CliRunner().invoke(command, words).exit_code == 0
    assert told == [(kinds, program)]
    wrong = CliRunner().invoke(command, ["--leak-check=some", "./app"])
    assert wrong.exit_code == 2 and "is no kind of leak" in wrong.output
