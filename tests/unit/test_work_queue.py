"""The queue of slow work: in order, and not to be ended by a task that fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from written import PATIENCE_SECONDS

from frida_rtetrack.stream.work import WorkQueue


def fail(error: Exception) -> Callable[[], None]:
    def task() -> None:
        raise error

    return task


def test_tasks_are_done_one_by_one_in_the_order_they_were_given() -> None:
    done: list[int] = []
    work = WorkQueue(lambda what, error: None)
    for number in range(100):
        work.put("count", lambda number=number: done.append(number))  # type: ignore[misc]
    work.start()
    work.flush(time.monotonic() + PATIENCE_SECONDS)
    assert done == list(range(100))
    work.finish("end", lambda: None)


def test_a_task_that_raises_is_told_of_and_the_next_one_is_done() -> None:
    failed: list[str] = []
    done = threading.Event()
    work = WorkQueue(lambda what, error: failed.append(f"{what}: {error}"))
    work.start()
    work.put("dump", fail(ValueError("full")))
    work.finish("end", done.set)
    assert done.wait(PATIENCE_SECONDS)
    assert failed == ["dump: full"]


def test_whoever_is_told_of_a_failure_may_fail_as_well() -> None:
    def on_failure(what: str, error: Exception) -> None:
        raise error

    done = threading.Event()
    work = WorkQueue(on_failure)
    work.start()
    work.put("dump", fail(ValueError()))
    work.finish("end", done.set)
    assert done.wait(PATIENCE_SECONDS)


def test_the_last_task_is_the_last_even_where_it_fails() -> None:
    later: list[int] = []
    work = WorkQueue(lambda what, error: None)
    work.finish("end", fail(ValueError()))
    work.put("late", lambda: later.append(1))
    work.start()
    work.join(PATIENCE_SECONDS)
    assert not [thread for thread in threading.enumerate() if thread is work._thread]
    assert later == []


def test_flush_waits_for_what_was_put_before_and_not_beyond_its_deadline_or_the_end() -> None:
    gate = threading.Event()
    work = WorkQueue(lambda what, error: None)
    work.start()
    work.put("wait", lambda: assert_true(gate.wait(PATIENCE_SECONDS)))
    began = time.monotonic()
    work.flush(began + 0.1)
    assert 0.1 <= time.monotonic() - began < 5
    gate.set()
    work.finish("end", lambda: None)
    work.join(PATIENCE_SECONDS)
    began = time.monotonic()
    work.flush(began + PATIENCE_SECONDS)
    assert time.monotonic() - began < 5


def test_a_task_may_join_its_own_queue() -> None:
    joined = threading.Event()
    work = WorkQueue(lambda what, error: None)

    def task() -> None:
        work.join(PATIENCE_SECONDS)
        joined.set()

    work.start()
    work.finish("end", task)
    assert joined.wait(PATIENCE_SECONDS / 2)


def assert_true(value: bool) -> None:
    assert value
