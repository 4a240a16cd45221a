"""The pump: what a subscriber may rely on, whatever the others do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from written import PATIENCE_SECONDS, WrittenSession, allocated, mark, wait_until

from frida_rtetrack.stream.events import EventBatch, Kind, Mark, Times
from frida_rtetrack.stream.pump import GATHER_SECONDS, Pump, Subscriber


class Log(Subscriber):
    """Notes down what it is handed, in a list that it may share with others."""

    def __init__(self, name: str = "", notes: list[object] | None = None) -> None:
        self.name = name
        self.notes: list[object] = [] if notes is None else notes
        self.addresses: list[int] = []
        self.first: list[int] = []
        self.lengths: list[int] = []
        self.lost: list[int] = []
        self.rounds = 0
        self.ends = 0

    def on_events(self, events: EventBatch, first: int, times: Times) -> None:
        self.addresses += events["address"].tolist()
        self.first.append(first)
        self.lengths.append(len(events))
        self.notes.append((self.name, "events", events["address"].tolist()))

    def on_mark(self, mark: np.void) -> None:
        self.notes.append((self.name, "mark", Mark(int(mark["api"]))))

    def on_round(self) -> None:
        self.rounds += 1

    def on_lost(self, lost: int) -> None:
        self.lost.append(lost)

    def on_end(self) -> None:
        self.ends += 1


class Rig:
    """A pump over a session that the test writes. It reads until `writing` is cleared."""

    def __init__(self) -> None:
        self.session = WrittenSession()
        self.writing = True
        self.problems: list[str] = []
        self.over = threading.Event()
        self.wake = threading.Event()
        self.pump = Pump(
            self.session.memory,
            thread_alive=lambda process, tid: False,
            anybody_writes=lambda: self.writing,
            wake=self.wake,
            on_problem=self.problems.append,
            on_end=self.over.set,
        )

    def finish(self) -> None:
        """What was written is the last of it."""
        self.writing = False
        self.wake.set()
        assert self.over.wait(PATIENCE_SECONDS)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.pump.stop()
    rig.pump.join(PATIENCE_SECONDS)
    rig.session.close()


def test_every_subscriber_gets_everything_in_the_order_of_subscription(rig: Rig) -> None:
    notes: list[object] = []
    rig.pump.subscribe(Log("first", notes), Log("second", notes))
    rig.pump.subscribe(Log("third", notes))
    rig.session.write(allocated(1), allocated(2))
    rig.pump.start()
    rig.finish()
    assert notes == [(name, "events", [1, 2]) for name in ("first", "second", "third")]


def test_a_mark_is_told_when_all_have_taken_what_came_before_it_and_nothing_later(rig: Rig) -> None:
    notes: list[object] = []
    last = Log("b", notes)
    rig.pump.subscribe(Log("a", notes), last)
    rig.session.write(allocated(1), mark(Mark.SIGNAL), mark(Mark.PAUSED), allocated(2))
    rig.pump.start()
    rig.finish()
    assert notes == [
        *(("a", "events", [1, 0]), ("b", "events", [1, 0]), ("a", "mark", Mark.SIGNAL), ("b", "mark", Mark.SIGNAL)),
        *(("a", "events", [0]), ("b", "events", [0]), ("a", "mark", Mark.PAUSED), ("b", "mark", Mark.PAUSED)),
        *(("a", "events", [2]), ("b", "events", [2])),
    ]
    assert last.first == [0, 2, 3]


def test_a_call_at_the_head_comes_after_what_was_written_before_it_and_before_the_rest(rig: Rig) -> None:
    log = Log()
    seen: list[list[int]] = []
    rig.pump.subscribe(log)
    rig.session.write(allocated(1), mark(Mark.SIGNAL), allocated(2))
    rig.pump.call_at_head(lambda: seen.append(list(log.addresses)))
    rig.pump.call_at_head(lambda: seen.append(list(log.addresses)))
    rig.session.write(allocated(3))
    rig.pump.call_at_head(lambda: seen.append(list(log.addresses)))
    rig.session.write(allocated(4))
    rig.pump.start()
    rig.finish()
    assert seen == [[1, 0, 2], [1, 0, 2], [1, 0, 2, 3]]
    assert log.addresses == [1, 0, 2, 3, 4]
    assert log.first == [0, 2, 3, 4]


def test_a_call_at_the_head_of_an_idle_ring_is_made_at_once(rig: Rig) -> None:
    called = threading.Event()
    rig.pump.start()
    rig.pump.call_at_head(called.set)
    assert called.wait(PATIENCE_SECONDS)


def test_a_call_at_the_head_is_made_after_the_end_too(rig: Rig) -> None:
    rig.pump.start()
    rig.finish()
    called = threading.Event()
    rig.pump.call_at_head(called.set)
    assert called.is_set()


def test_the_first_index_counts_every_event_of_a_ring_that_goes_round_and_round(rig: Rig) -> None:
    log = Log()
    rig.pump.subscribe(log)
    rig.pump.start()
    number = 2 * len(rig.session.memory.ring) + 17
    rig.session.write(*(allocated(address) for address in range(number)))
    rig.finish()
    assert log.addresses == list(range(number))
    assert log.first == np.cumsum([0, *log.lengths])[:-1].tolist()


def test_when_nobody_writes_any_more_all_is_read_before_the_end(rig: Rig) -> None:
    log = Log()
    rig.pump.subscribe(log)
    rig.session.write(*(allocated(address) for address in range(5000)))
    rig.writing = False
    rig.pump.start()
    assert rig.over.wait(PATIENCE_SECONDS)
    assert (len(log.addresses), log.ends, rig.problems) == (5000, 1, [])


def test_stopped_it_reads_what_is_there_and_ends_though_there_are_writers(rig: Rig) -> None:
    log = Log()
    rig.pump.subscribe(log)
    rig.pump.start()
    rig.session.write(*(allocated(address) for address in range(5000)))
    rig.pump.stop()
    assert rig.over.wait(PATIENCE_SECONDS)
    assert len(log.addresses) == 5000


def test_a_subscriber_that_raises_ends_the_reading_and_the_user_is_told(rig: Rig) -> None:
    class Broken(Subscriber):
        def on_events(self, events: EventBatch, first: int, times: Times) -> None:
            raise ValueError("no")

    log = Log()
    called: list[bool] = []
    rig.pump.subscribe(Broken(), log)
    rig.session.write(allocated(1))
    rig.pump.call_at_head(lambda: called.append(True))  # not lost either
    rig.pump.start()
    assert rig.over.wait(PATIENCE_SECONDS)
    rig.session.write(allocated(2))
    assert rig.problems == ["Reading the events failed: ValueError('no'). The figures end here."]
    assert (log.addresses, log.ends, called) == ([], 1, [True])


def test_a_subscriber_that_raises_at_the_end_does_not_keep_the_session_from_ending(rig: Rig) -> None:
    class Broken(Subscriber):
        def on_end(self) -> None:
            raise ValueError("no")

    rig.pump.subscribe(Broken())
    rig.pump.start()
    rig.finish()
    assert rig.problems == ["Ending the reading failed: ValueError('no')."]


def test_sync_waits_until_the_last_subscriber_has_taken_it(rig: Rig) -> None:
    class Slow(Subscriber):
        taken = 0

        def on_events(self, events: EventBatch, first: int, times: Times) -> None:
            time.sleep(0.1)
            self.taken += len(events)

    slow = Slow()
    rig.pump.subscribe(slow)
    rig.pump.start()
    rig.session.write(allocated(1), mark(Mark.SIGNAL), allocated(2))
    rig.pump.sync(time.monotonic() + PATIENCE_SECONDS)
    assert slow.taken == 3


def test_sync_gives_up_at_its_deadline(rig: Rig) -> None:
    rig.session.write(allocated(1))  # nobody reads it
    began = time.monotonic()
    rig.pump.sync(began + 0.1)
    assert 0.1 <= time.monotonic() - began < 5


def test_who_holds_the_lock_sees_all_subscribers_at_the_same_place(rig: Rig) -> None:
    first, second = Log(), Log()
    rig.pump.subscribe(first, second)
    rig.pump.start()
    for address in range(300):
        rig.session.write(allocated(address))
        with rig.pump.lock:
            assert len(first.addresses) == len(second.addresses)


def test_losses_are_told_once_and_again_when_there_are_more(rig: Rig) -> None:
    log = Log()
    rig.pump.subscribe(log)
    rig.pump.start()
    rig.session.memory.header["lost"] = 3
    wait_until(lambda: log.lost)
    rounds = log.rounds
    wait_until(lambda: log.rounds > rounds + 2)
    assert log.lost == [3]
    rig.session.memory.header["head"] = 1  # claimed by a thread that is dead: a hole
    wait_until(lambda: len(log.lost) == 2)
    assert (log.lost, rig.pump.lost) == ([3, 4], 4)


def test_the_target_is_told_that_the_host_is_alive_while_it_reads(rig: Rig) -> None:
    rig.session.memory.header["heartbeat_ns"] = 1
    rig.pump.start()
    wait_until(lambda: rig.session.memory.counter("heartbeat_ns") > 1)
    rig.finish()
    rig.pump.join(PATIENCE_SECONDS)
    rig.session.memory.header["heartbeat_ns"] = 1
    time.sleep(0.6)
    assert rig.session.memory.counter("heartbeat_ns") == 1


def test_a_round_is_made_though_nothing_is_written(rig: Rig) -> None:
    log = Log()
    rig.pump.subscribe(log)
    rig.pump.start()
    wait_until(lambda: log.rounds > 5)
    assert log.addresses == []


def test_who_subscribes_later_gets_what_comes_later(rig: Rig) -> None:
    early, late = Log(), Log()
    rig.pump.subscribe(early)
    rig.pump.start()
    rig.session.write(allocated(1))
    rig.pump.sync(time.monotonic() + PATIENCE_SECONDS)
    rig.pump.subscribe(late)
    rig.session.write(allocated(2))
    rig.finish()
    assert (early.addresses, late.addresses) == ([1, 2], [2])


def test_batches_are_of_the_one_event_format(rig: Rig) -> None:
    kinds: list[int] = []

    class Kinds(Subscriber):
        def on_events(self, events: EventBatch, first: int, times: Times) -> None:
            kinds.extend(events["kind"].tolist())

    rig.pump.subscribe(Kinds())
    rig.session.write(allocated(1), mark(Mark.SIGNAL))
    rig.pump.start()
    rig.finish()
    assert kinds == [Kind.ALLOCATED, Kind.MARK]


def test_who_writes_all_the_time_is_not_read_all_the_time(rig: Rig) -> None:
    class Echo(Log):
        def on_events(self, events: EventBatch, first: int, times: Times) -> None:
            super().on_events(events, first, times)
            if rig.writing:
                rig.session.write(allocated(len(self.lengths) + 1))  # so that there is always something to read

    log = Echo()
    rig.pump.subscribe(log)
    rig.session.write(allocated(1))
    begun = time.monotonic()
    rig.pump.start()
    wait_until(lambda: len(log.lengths) > 20)
    rig.finish()
    took = time.monotonic() - begun
    assert log.addresses == list(range(1, len(log.addresses) + 1))
    assert len(log.lengths) <= took / GATHER_SECONDS + 3
