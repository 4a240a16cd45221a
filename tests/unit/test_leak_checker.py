"""When a program that ends is searched for lost blocks, and when no answer is given rather than a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from test_cigate import leaks, lost
from written import mark

from frida_rtetrack.errors import AgentFailed, TargetEnded
from frida_rtetrack.options import LeakKind
from frida_rtetrack.reports.leakcheck import LeakChecker
from frida_rtetrack.reports.lost import LostReport
from frida_rtetrack.stream.events import Mark
from frida_rtetrack.tracking.heap import HeapOwner
from frida_rtetrack.tracking.map import TrackingMap

FOUND = cast(LostReport, lost(leaks(), leaks()).lost)


class Process:
    """A tracked process, with the calls of its agent."""

    def __init__(self, *, hooks: int = 1, is_tracked: bool = True) -> None:
        self.hooks = [{"function": "rte_free"}] * hooks
        self.cleaned_up = False
        self.is_tracked = is_tracked
        self.calls: list[str] = []

    def call(self, method: str, *arguments: Any) -> None:
        self.calls.append(method)
        if not self.is_tracked:
            raise TargetEnded("It is gone.")


def after_the_end_of(
    *processes: Process,
    search: Callable[[], LostReport] = lambda: FOUND,
    owner: HeapOwner = HeapOwner.TARGET,
    marks: int = 1,
) -> Any:
    """What is known when the first of `processes` waited at its end."""
    checker = LeakChecker(
        {LeakKind.LOST},
        TrackingMap(),
        processes=lambda: processes,
        of_event=lambda event: processes[0],
        owner=lambda: owner,
        search=search,
        growing=lambda: None,
    )
    for _ in range(marks):
        checker.on_mark(mark(Mark.END_HELD))
    checker.wait()
    return checker.result()


def test_a_program_that_ends_is_searched_and_let_end() -> None:
    program = Process()
    found = after_the_end_of(program)
    assert found.lost is FOUND and not found.not_told and program.calls == ["let_end"]


def test_a_program_is_let_end_also_where_the_search_fails() -> None:
    def fail() -> LostReport:
        raise AgentFailed("The agent failed.")

    program = Process()
    found = after_the_end_of(program, search=fail)
    assert found.lost is None and found.not_told == ("Lost blocks could not be looked for. The agent failed.",)
    assert program.calls == ["let_end"]


def test_while_another_process_has_the_heap_the_end_of_one_is_no_end() -> None:
    program = Process()
    assert after_the_end_of(program, Process()).lost is None and program.calls == ["let_end"]
    assert after_the_end_of(Process(), Process(hooks=0)).lost is FOUND  # a launcher without DPDK
    assert after_the_end_of(Process(hooks=0), Process(is_tracked=False)).lost is None  # the launcher's own end


@pytest.mark.parametrize(
    ("processes", "owner", "why"),
    [
        ((Process(), Process(is_tracked=False)), HeapOwner.TARGET, "Another process that had the heap ended before"),
        ((Process(),), HeapOwner.CHILD, "DPDK's heap is that of a forked child."),
        ((Process(),), HeapOwner.UNSEEN, "The process that ended never had a heap of DPDK's."),
    ],
)
def test_what_would_be_called_lost_wrongly_is_not_told(
    processes: tuple[Process, ...], owner: HeapOwner, why: str
) -> None:
    found = after_the_end_of(*processes, owner=owner)
    assert found.lost is None and why in found.not_told[0]
    assert found.as_json() == {"lost": None}


@pytest.mark.parametrize(("what", "value"), [("is_tracked", False), ("cleaned_up", True)])
def test_what_a_program_held_that_ended_while_it_was_searched_is_not_called_lost(what: str, value: bool) -> None:
    program = Process()

    def gone_meanwhile() -> LostReport:
        setattr(program, what, value)
        return FOUND

    found = after_the_end_of(program, search=gone_meanwhile)
    assert found.lost is None and "ended while its memory was searched" in found.not_told[0]


def test_however_often_a_program_says_that_it_ends_it_is_searched_once() -> None:
    searched: list[int] = []

    def search() -> LostReport:
        searched.append(1)
        return FOUND

    after_the_end_of(Process(), search=search, marks=1000)
    assert len(searched) == 1


def test_a_program_that_never_waited_at_an_end_is_not_told() -> None:
    checker = LeakChecker(
        {LeakKind.LOST, LeakKind.GROWING}, TrackingMap(), growing=lambda: None,
        processes=lambda: [], of_event=lambda event: None, owner=lambda: HeapOwner.TARGET, search=lambda: FOUND,
    )  # fmt: skip
    checker.on_mark(mark(Mark.END_HELD))  # of a forked child
    assert len(checker.result().not_told) == 2 and checker.result().lost is None
