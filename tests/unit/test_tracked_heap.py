"""A heap as its events tell it: what marks mean, DPDK's own view, bad frees, when a dump is written. No target: the
session memory is real, its events are the test's, and the pump brings them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from rig import Rig
from written import PATIENCE_SECONDS, allocated, busy, freed, mark, wait_until

from frida_rtetrack.errors import AgentFailed, NotLive
from frida_rtetrack.reporters import text
from frida_rtetrack.reports import dumper
from frida_rtetrack.reports.dump import read_dump
from frida_rtetrack.stream.events import FINAL_BASELINE, Mark
from frida_rtetrack.tracking import badfreelog
from frida_rtetrack.tracking.badfree import BadFreeReport
from frida_rtetrack.tracking.map import BadFreeKind

A, B, C = 0x1_4000_0000, 0x1_4000_0080, 0x1_4000_0100
"""Three addresses as DPDK hands them out."""


EAL_OF_A_CHILD = (Mark.EAL_INIT_STARTED, Mark.EAL_CLEANUP_STARTED, Mark.EAL_CLEANUP_ENDED)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.end()
    rig.session.pump.join(PATIENCE_SECONDS)
    rig.written.close()


# ---- EAL


def test_what_rte_eal_init_allocated_is_told_apart_and_what_lives_at_cleanup_is_kept(rig: Rig) -> None:
    rig.processes.targets[1].is_tracked = False
    rig.write(
        *(mark(Mark.EAL_INIT_STARTED), allocated(A), mark(Mark.EAL_INIT_ENDED), allocated(B), allocated(C), freed(C)),
        *(mark(Mark.EAL_CLEANUP_STARTED), freed(B), mark(Mark.EAL_CLEANUP_ENDED)),
    )
    eal = rig.heap.eal
    assert eal.at_cleanup is not None
    of_eal = {
        int(row["address"]): any(first <= row["sequence"] < last for first, last in eal.init_ranges)
        for row in eal.at_cleanup
    }
    assert of_eal == {A: True, B: False}


def test_a_secondary_that_cleans_up_leaves_the_heap_to_the_primary(rig: Rig) -> None:
    rig.write(allocated(A), mark(Mark.EAL_CLEANUP_STARTED, thread=2), mark(Mark.EAL_CLEANUP_ENDED, thread=2))
    assert rig.heap.eal.at_cleanup is None
    rig.write(mark(Mark.EAL_CLEANUP_STARTED, thread=1))
    assert rig.heap.eal.at_cleanup is not None


def test_a_free_after_cleanup_is_accused_with_its_allocation_and_is_no_free_to_the_map(rig: Rig) -> None:
    rig.write(allocated(A), allocated(B), mark(Mark.EAL_CLEANUP_STARTED), mark(Mark.EAL_CLEANUP_ENDED), freed(A))
    (report,) = rig.told.reports
    assert (report.kind, report.address) == (BadFreeKind.AFTER_CLEANUP, A)
    assert report.allocated is not None
    assert report.allocated.size_bytes == 64
    assert rig.live() == {A, B}
    rig.write(freed(B, thread=2))  # of a process that still has its heap
    assert len(rig.told.reports) == 1
    assert rig.live() == {A}


def test_what_a_forked_child_does_to_eal_is_not_what_the_program_does(rig: Rig) -> None:
    rig.write(mark(Mark.EAL_INIT_STARTED), mark(Mark.EAL_INIT_ENDED))
    rig.write(*(mark(kind, thread=3) for kind in EAL_OF_A_CHILD))
    assert (rig.heap.eal.init_ranges, rig.heap.eal.at_cleanup) == ([(1, 2)], None)
    assert not any(target.cleaned_up for target in rig.processes.targets)


def test_a_snapshot_without_its_moment_is_none(rig: Rig) -> None:
    rig.write(mark(Mark.EAL_INIT_STARTED), mark(Mark.BASELINE_STARTED, FINAL_BASELINE), busy(A))
    rig.write(mark(Mark.BASELINE_ENDED, FINAL_BASELINE), allocated(B))
    assert (rig.told.problems, rig.heap.view.verified, rig.live()) == ([], None, {B})


def test_where_the_program_leaves_eal_to_a_forked_child_the_childs_heap_is_the_one(rig: Rig) -> None:
    snapshot = (Mark.BASELINE_STARTED, Mark.HEAP_SNAPSHOT, Mark.BASELINE_ENDED)
    rig.write(*(mark(kind, FINAL_BASELINE) for kind in snapshot))  # the parent ends
    rig.write(*(mark(kind, thread=3) for kind in EAL_OF_A_CHILD[:1]), allocated(A, thread=3))
    rig.write(*(mark(kind, thread=3) for kind in EAL_OF_A_CHILD[1:]))
    assert rig.heap.view.without_heap
    assert rig.heap.view.verified is None
    assert len(rig.heap.eal.init_ranges) == 1
    assert rig.heap.eal.at_cleanup is not None
    assert rig.heap.eal.at_cleanup["address"].tolist() == [A]
    with pytest.raises(NotLive, match="forked child"):
        rig.heap.view.verify()


def test_the_child_that_has_the_heap_takes_the_last_look_at_it(rig: Rig) -> None:
    rig.write(mark(Mark.EAL_INIT_STARTED, thread=3), mark(Mark.EAL_INIT_ENDED, thread=3), allocated(A, thread=3))
    rig.write(
        *(mark(kind, FINAL_BASELINE) for kind in (Mark.BASELINE_STARTED, Mark.HEAP_SNAPSHOT, Mark.BASELINE_ENDED))
    )
    assert (rig.heap.view.verified, rig.heap.view.without_heap) == (None, True), "its parent has none"
    rig.write(mark(Mark.BASELINE_STARTED, FINAL_BASELINE, thread=3), mark(Mark.HEAP_SNAPSHOT, FINAL_BASELINE, thread=3))
    rig.write(busy(A), mark(Mark.BASELINE_ENDED, FINAL_BASELINE, thread=3))
    assert rig.heap.view.verified is not None
    assert (not rig.heap.view.verified, rig.heap.view.verified.busy) == (True, 1)


def test_the_heap_of_a_child_that_has_ended_ends_with_it_when_another_one_sets_eal_up(rig: Rig) -> None:
    rig.written.set_thread(4, 8)
    rig.write(mark(Mark.EAL_INIT_STARTED, thread=3), mark(Mark.EAL_INIT_ENDED, thread=3), allocated(A, thread=3))
    rig.write(mark(Mark.EAL_INIT_STARTED, thread=4), mark(Mark.EAL_INIT_ENDED, thread=4))
    assert rig.live() == {A}, "its owner lives: the other one's is another heap"
    rig.processes.gone = {7}
    rig.write(mark(Mark.EAL_INIT_STARTED, thread=4), mark(Mark.EAL_INIT_ENDED, thread=4), allocated(B, thread=4))
    assert rig.live() == {B}
    assert rig.told.reports == []


def test_where_the_heap_lies_is_noted_for_the_process_that_said_it(rig: Rig) -> None:
    rig.write(mark(Mark.HEAP_REGION, 4096, address=A, thread=2))
    first, second = (target.space for target in rig.processes.targets)
    assert first.in_dpdk_heap(A) is None
    assert (second.in_dpdk_heap(A), second.in_dpdk_heap(A + 4096)) == (True, False)


# ---- DPDK's own view


def test_a_baseline_takes_in_what_dpdk_has_and_lets_go_of_what_it_has_not(rig: Rig) -> None:
    rig.map.mark_incomplete()
    rig.write(allocated(A), allocated(B))
    rig.answer(busy(A), busy(C))
    assert rig.heap.view.baseline() == 2
    assert rig.live() == {A, C}
    assert rig.map.complete


def test_a_baseline_does_not_complete_what_another_process_shares_unseen_and_the_user_is_told_once(rig: Rig) -> None:
    rig.map.mark_incomplete()
    rig.heap.view.sharing_untracked = (4711,)
    rig.answer(busy(A))
    rig.heap.view.baseline()
    assert not rig.map.complete
    assert rig.told.problems == []
    rig.write(freed(B), freed(C))
    rig.write(freed(B + 0x1000))
    (problem,) = rig.told.problems
    assert "4711" in problem
    assert rig.told.reports == []


def test_verify_finds_both_kinds_of_difference_and_does_not_change_the_map(rig: Rig) -> None:
    rig.write(allocated(A), allocated(B))
    rig.answer(busy(B), busy(C, 192))
    difference = rig.heap.view.verify()
    assert difference is not None
    assert [block.address for block in difference.unexpected] == [A]
    assert [(element.address, element.size_bytes) for element in difference.missing] == [(C, 192)]
    assert rig.live() == {A, B}
    assert rig.heap.view.last is difference
    assert rig.heap.view.verified is None, "it was not at the end"


def test_what_the_program_does_while_the_heap_is_read_is_no_difference(rig: Rig) -> None:
    rig.write(allocated(A))
    rig.answer(busy(B), during=(freed(A), allocated(B)))
    difference = rig.heap.view.verify()
    assert difference is not None
    assert not difference


def test_a_difference_that_does_not_last_is_none(rig: Rig) -> None:
    rig.answer(busy(A))
    once = rig.processes.answer

    def snapshot(number: int) -> int | None:
        blocks = once(number)
        rig.answer()
        return blocks

    rig.processes.answer = snapshot
    difference = rig.heap.view.verify()
    assert difference is not None
    assert not difference


def test_a_heap_that_cannot_be_asked_is_no_answer_or_an_error(rig: Rig) -> None:
    rig.map.mark_incomplete()
    assert rig.heap.view.baseline() is None
    assert rig.heap.view.verify() is None
    assert not rig.map.complete
    rig.processes.answer = lambda number: -2
    with pytest.raises(NotLive, match="rte_eal_cleanup"):
        rig.heap.view.verify()
    rig.processes.answer = lambda number: -1
    with pytest.raises(AgentFailed):
        rig.heap.view.verify()


def test_a_program_that_ends_while_its_heap_is_read_is_not_waited_for(rig: Rig) -> None:
    def die(number: int) -> int:
        rig.written.write(mark(Mark.BASELINE_STARTED, number), mark(Mark.HEAP_SNAPSHOT, number))
        rig.processes.writing = False
        return 1

    rig.processes.answer = die
    with pytest.raises(NotLive, match="ended while"):
        rig.heap.view.verify()


def test_the_snapshot_that_the_agent_takes_at_the_end_is_kept_as_verified(rig: Rig) -> None:
    rig.write(allocated(A))
    rig.write(*(mark(kind, FINAL_BASELINE) for kind in (Mark.BASELINE_STARTED, Mark.HEAP_SNAPSHOT)))
    rig.write(busy(B), mark(Mark.BASELINE_ENDED, FINAL_BASELINE, thread=3))  # a forked child's is not it
    assert rig.heap.view.verified is None
    rig.write(mark(Mark.BASELINE_ENDED, FINAL_BASELINE))
    assert rig.heap.view.verified is not None
    assert len(rig.heap.view.verified.unexpected) == len(rig.heap.view.verified.missing) == 1


def test_a_loss_is_told_and_healed_by_a_fresh_look(rig: Rig) -> None:
    rig.write(allocated(A))
    rig.answer(busy(B))
    rig.written.memory.header["lost"] = 2
    wait_until(lambda: rig.live() == {B} and rig.map.complete)
    (problem,) = rig.told.problems
    assert problem.startswith("2 events were lost so far")


def test_a_loss_that_cannot_be_healed_leaves_the_map_incomplete_and_is_told(rig: Rig) -> None:
    rig.processes.answer = lambda number: -2
    rig.written.memory.header["lost"] = 1
    wait_until(lambda: len(rig.told.problems) == 2)
    assert not rig.map.complete
    rig.write(freed(A))
    assert rig.told.reports == []


# ---- bad frees


def test_bad_frees_are_numbered_and_counted_and_only_so_many_are_kept(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(badfreelog, "BAD_FREES_KEPT", 2)
    rig.write(allocated(A), freed(A), freed(A), freed(B))
    rig.write(freed(C))
    log = rig.heap.bad_frees
    assert [(report.number, report.kind) for report in log.reports] == [
        (1, BadFreeKind.DUPLICATE),
        (2, BadFreeKind.STRAY),
    ]
    assert (log.found, log.not_kept) == (3, 1)
    assert rig.told.reports == log.reports


def test_a_free_inside_of_a_block_names_that_block_though_it_is_freed_later_in_the_batch(rig: Rig) -> None:
    rig.write(allocated(A, 256), freed(A + 64), freed(A))
    (report,) = rig.told.reports
    assert report.kind is BadFreeKind.INTERIOR
    assert report.allocated is not None
    assert report.allocated.address == A


def test_an_address_that_was_freed_and_lies_in_a_live_block_now_is_told_both_ways_the_likelier_first(rig: Rig) -> None:
    earlier = allocated(A + 64, 64, thread=1), freed(A + 64, thread=1), allocated(A, 256, thread=2)
    rig.write(*earlier, freed(A + 64, thread=1))
    (by_the_earlier_owner,) = rig.told.reports
    assert by_the_earlier_owner.kind is BadFreeKind.DUPLICATE
    assert by_the_earlier_owner.allocated is not None
    assert by_the_earlier_owner.allocated.address == A + 64
    assert by_the_earlier_owner.also is not None
    assert by_the_earlier_owner.also.kind is BadFreeKind.INTERIOR
    assert by_the_earlier_owner.also.allocated is not None
    assert by_the_earlier_owner.also.allocated.address == A

    rig.write(freed(A + 64, thread=2))
    by_the_user_of_the_live_one = rig.told.reports[1]
    assert by_the_user_of_the_live_one.kind is BadFreeKind.INTERIOR
    assert by_the_user_of_the_live_one.allocated is not None
    assert by_the_user_of_the_live_one.allocated.address == A
    assert by_the_user_of_the_live_one.also is not None
    assert by_the_user_of_the_live_one.also.kind is BadFreeKind.DUPLICATE
    assert by_the_user_of_the_live_one.first_freed is not None
    lines = "\n".join(text.bad_free(by_the_user_of_the_live_one))
    assert "It may also be a duplicate free: The block was already freed." in lines


# ---- dumps


def test_sigrtmin_dumps_the_heap_as_it_was_at_the_mark(rig: Rig) -> None:
    rig.write(allocated(A), mark(Mark.SIGNAL), allocated(B))
    assert rig.told.dumps == [(1, "SIGRTMIN")]
    assert [row.address for row in read_dump(rig.dump_path)] == [A]
    rig.write(mark(Mark.SIGNAL, thread=3))  # to a forked child
    assert rig.told.dumps[-1] == (2, "SIGRTMIN")


def test_bad_frees_of_one_second_make_one_dump_and_what_was_put_off_is_dumped_at_the_end(rig: Rig) -> None:
    rig.write(allocated(A), freed(B))
    wait_until(lambda: rig.told.dumps)
    rig.write(freed(C))
    rig.write(freed(C + 0x80), allocated(B))
    rig.end()
    assert rig.told.dumps == [(1, "bad free"), (2, "bad free")]


def test_bad_frees_are_dumped_again_when_a_second_is_over(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumper, "BAD_FREE_DUMP_SECONDS", 0.1)
    rig.write(freed(B))
    wait_until(lambda: rig.told.dumps)
    rig.write(freed(C))
    wait_until(lambda: len(rig.told.dumps) == 2)
    time.sleep(0.4)
    assert len(rig.told.dumps) == 2


def test_a_dump_that_cannot_be_written_is_told_and_the_tracking_goes_on(rig: Rig) -> None:
    rig.dump_path.mkdir()
    rig.write(mark(Mark.SIGNAL))
    assert len(rig.told.problems) == 1
    rig.write(mark(Mark.SIGNAL))
    assert len(rig.told.problems) == 1, "the same is said once"
    rig.write(allocated(A))
    assert rig.live() == {A}


def test_an_observer_that_raises_does_not_end_the_tracking(rig: Rig) -> None:
    rig.told.reports = cast(list[BadFreeReport], None)
    rig.write(freed(A))
    assert rig.told.problems[0].startswith("bad_frees failed: AttributeError")
    rig.told.reports = []
    rig.write(freed(B))
    assert [report.address for report in rig.told.reports] == [B]


# ---- a program that lies


def test_a_snapshot_that_cannot_arrive_any_more_is_not_waited_for(rig: Rig) -> None:
    rig.write(allocated(A))
    rig.processes.answer = lambda number: 1
    rig.written.memory.header["head"] = 1 << 50
    started = time.monotonic()
    with pytest.raises(NotLive, match="damaged"):
        rig.heap.view.verify()
    assert time.monotonic() - started < 5
    assert rig.live() == {A}


def test_what_is_written_again_and_again_is_not_kept_again_and_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumper, "WAITING_AT_MOST", 3)
    started = threading.Event()
    rig.work.put("hold", lambda: started.wait(PATIENCE_SECONDS) and None)
    for number in range(1, 300):
        rig.written.write(
            *(mark(Mark.BASELINE_STARTED, 1000 + number), mark(Mark.EAL_INIT_STARTED), mark(Mark.SIGNAL)),
            *(mark(Mark.HEAP_REGION, number << 21, address=A), mark(Mark.HEAP_REGION, 1 << 21, address=B)) * 6,
        )
    rig.session.pump.sync(time.monotonic() + PATIENCE_SECONDS)
    started.set()
    rig.sync()
    assert rig.heap.view._awaited == {}
    assert len(rig.processes.targets[0].space.heap_regions) == 300
    assert len(rig.told.dumps) == 3
