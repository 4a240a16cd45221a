"""The group of targets: who is asked, signalled, waited for. The targets are plain stand-ins; processes, where it takes
some, and the session memory are real.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from written import WrittenSession, allocated, wait_until

from frida_rtetrack.errors import BadUsage, LibraryNotFound, NoDpdk, NotLive, RtetrackError, TargetEnded
from frida_rtetrack.options import Options
from frida_rtetrack.stream.events import ExecState
from frida_rtetrack.target import execgate, kinship
from frida_rtetrack.target.group import TargetGroup
from frida_rtetrack.target.kinship import Kinship
from frida_rtetrack.target.offspring import Offspring
from frida_rtetrack.target.target import Target

NO_SUCH_PID = 2**22 + 1


class StandIn:
    """What the group sees of a target, answered from attributes. Its session memory is made in this process."""

    def __init__(self, pid: int = 0, *, hooks: int = 1, answers: object = "yes") -> None:
        self.pid = pid or os.getpid()
        self.hooks = [{"function": "rte_free", "module": "m", "address": "0x1", "how": "near"}] * hooks
        self.answers = answers
        self.calls: list[tuple[object, ...]] = []
        self.signals: list[int] = []
        self.number = -1
        self.is_tracked, self.gone, self.cleaned_up, self.ours, self.gated = True, False, False, False, None
        self.modules = ["/usr/lib/librte_eal.so.23", "/usr/lib/libc.so.6", "/opt/libmine.so"]
        self.problem: RtetrackError | None = None
        self.space = self
        self.say: Callable[[dict[str, Any]], None]
        self.lose: Callable[[], None]

    def load(self, on_message: Callable[..., None], on_detached: Callable[..., None]) -> None:
        self.say = lambda message: on_message(self, message)
        self.lose = lambda: on_detached(self)

    def gate_for_agent(self) -> None:
        return None

    def call(self, method: str, *arguments: object) -> object:
        self.calls.append((method, *arguments))
        if method == "create_session":
            return os.memfd_create("session", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        if method == "join_session":
            return os.open(str(arguments[0]), os.O_RDWR)
        if method == "start":
            return {"process": len(self.calls), "engine": "native", "builtBy": "gcc 12.2 -O2"}
        if method == "module_names":
            return self.modules
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers

    def settle(self) -> None:
        self.calls.append(("settle",))

    def refresh(self) -> None:
        self.calls.append(("refresh",))

    def is_gone(self) -> bool:
        return self.gone

    def try_signal(self, number: int) -> None:
        self.signals.append(number)

    send_signal = try_signal

    def wait_gone(self, seconds: float) -> bool:
        return self.gone

    def unload(self) -> RtetrackError | None:
        return self.problem

    def close(self) -> None:
        self.calls.append(("close",))


class Told:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.hooks: list[int] = []

    def hooked(self, hooks: list[dict[str, str]]) -> None:
        self.hooks.append(len(hooks))

    def forked(self, parent: int, child: int) -> None:
        self.lines.append(f"{parent} forked {child}")

    def problem(self, text: str) -> None:
        self.lines.append(text)


def group_of(*targets: StandIn, told: Told | None = None, **options: Any) -> TargetGroup:
    group = TargetGroup(
        Options(buffer_mib=1, **options),
        symbols_of=lambda pid, given: {"m": {"rte_free": 1}},
        told=told or Told(),
        wake=threading.Event(),
    )
    group.open_session(cast(Target, targets[0]))
    group.start_first()
    for other in targets[1:]:
        group.add(cast(Target, other))
    return group


def test_the_session_memory_is_made_in_the_first_and_joined_by_the_others() -> None:
    first, second = StandIn(), StandIn()
    group = group_of(first, second)
    assert [call[0] for call in first.calls] == ["create_session", "start", "settle"]
    assert [call[0] for call in second.calls] == ["join_session", "start", "settle"]
    started = second.calls[1]
    options = cast(dict[str, Any], started[2])
    assert os.fstat(cast(int, started[1])).st_size == group.memory.counter("total_bytes") == options["sessionBytes"]
    assert options["symbols"] == {"m": {"rte_free": 1}}
    assert group.engine == "native"
    assert not options["ownHeap"]
    group.close()
    assert first.calls[-1] == second.calls[-1] == ("close",)


def test_the_native_engine_is_refused_where_it_is_not_for_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(BadUsage):
        group_of(StandIn(), engine="native")
    assert cast(dict[str, Any], group_of(StandIn()).first.calls[1][2])["engine"] == "portable"  # type: ignore[attr-defined]


def test_a_question_goes_to_the_first_that_found_dpdk_and_is_still_there() -> None:
    without, gone, cleaned, ended, there = (StandIn(answers=number) for number in range(5))
    without.hooks = []
    gone.is_tracked = False
    cleaned.cleaned_up = True
    ended.answers = TargetEnded("gone")
    assert group_of(without, gone, cleaned, ended, there).ask("snapshot", 7) == 4
    assert there.calls[-1] == ("snapshot", 7)
    assert ("snapshot", 7) in ended.calls
    assert not [target for target in (without, gone, cleaned) if ("snapshot", 7) in target.calls]
    there.is_tracked = False
    assert group_of(without, ended).ask("snapshot", 8) == 0


def test_nobody_left_to_ask_or_to_command_is_an_error() -> None:
    target = StandIn()
    group = group_of(target)
    target.is_tracked = False
    with pytest.raises(NotLive):
        group.ask("snapshot", 1)
    with pytest.raises(NotLive):
        group.command_all("pause")


def test_a_command_goes_to_all_that_are_there() -> None:
    first, gone, third = StandIn(), StandIn(), StandIn()
    gone.is_tracked = False
    group_of(first, gone, third).command_all("pause")
    assert [("pause",) in target.calls for target in (first, gone, third)] == [True, False, True]


def test_a_signal_for_all_reaches_what_is_ours_once_a_process_and_no_one_else() -> None:
    first, executed, again, joined = StandIn(), StandIn(12), StandIn(12), StandIn(13)
    executed.ours = again.ours = True
    group = group_of(first, executed, again, joined)
    group.signal_all(signal.SIGINT)
    signals = [target.signals for target in (first, executed, again, joined)]
    assert (signals[0], signals[1] + signals[2], signals[3]) == ([2], [2], [])
    first.gone = True
    group.signal_first(signal.SIGTERM)
    assert executed.signals + again.signals == [2, 15]
    executed.gone = again.gone = True
    with pytest.raises(NotLive):
        group.signal_all(signal.SIGINT)


def test_end_kills_what_does_not_end_of_itself() -> None:
    stubborn, polite = StandIn(), StandIn(12)
    polite.ours = True
    group = group_of(stubborn, polite)
    polite.wait_gone = lambda seconds: setattr(polite, "gone", True) or True  # type: ignore[method-assign,func-returns-value]
    group.end(0)
    assert stubborn.signals == [signal.SIGTERM, signal.SIGKILL]
    assert polite.signals == [signal.SIGTERM]


def test_unload_tells_what_went_wrong_but_not_that_a_process_is_gone() -> None:
    first, second, third = StandIn(), StandIn(), StandIn()
    first.problem, second.problem = TargetEnded("gone"), RtetrackError("stuck")
    assert [str(problem) for problem in group_of(first, second, third).unload()] == ["stuck"]


def test_hooks_are_told_at_once_or_all_together_where_they_are_held() -> None:
    told, target = Told(), StandIn(hooks=0)
    group = group_of(target, told=told)
    target.say({"type": "hooked", "hooks": [{}, {}]})
    assert told.hooks == [2]
    group.hold_hooks()
    target.say({"type": "hooked", "hooks": [{}]})
    assert told.hooks == [2]
    group.tell_hooks()
    assert told.hooks == [2, 3]
    assert len(group.hooks) == 3


def test_what_an_agent_complains_of_is_told_with_its_process() -> None:
    told, target = Told(), StandIn()
    group_of(target, told=told)
    target.say({"type": "error", "text": "TypeError"})
    target.say({"type": "another heap", "module": "/x/libother.so"})
    assert told.lines[0] == f"In process {target.pid}: TypeError"
    assert "libother.so" in told.lines[1]


def test_a_program_without_dpdk_is_told_with_the_modules_that_come_close() -> None:
    with pytest.raises(NoDpdk) as no_dpdk:
        group_of(StandIn(), StandIn(hooks=0)).check_dpdk_was_found()
    assert "librte_eal.so.23" in no_dpdk.value.hint
    with pytest.raises(LibraryNotFound) as not_found:
        group_of(StandIn(hooks=0), library="libmine.so.2").check_dpdk_was_found()
    assert "libmine.so" in not_found.value.hint
    group_of(StandIn()).check_dpdk_was_found()


def test_when_frida_lost_a_target_the_reading_looks_again() -> None:
    target = StandIn()
    wake = threading.Event()
    group = TargetGroup(Options(buffer_mib=1), symbols_of=lambda pid, given: {}, told=Told(), wake=wake)
    group.open_session(cast(Target, target))
    assert group.anybody_writes()
    target.is_tracked = False
    target.lose()
    assert wake.is_set()
    assert not group.anybody_writes()


def test_an_event_is_of_the_target_whose_thread_wrote_it() -> None:
    first, second = StandIn(), StandIn()
    group = group_of(first, second)
    session = WrittenSession()
    group.memory = session.memory
    first.number, second.number = 0, 1
    assert group.of_event(allocated(1, thread=1)) is first
    assert group.of_event(allocated(1, thread=2)) is second
    session.set_thread(3, 5)
    assert group.of_event(allocated(1, thread=3)) is None
    session.close()


# ---- forks and execs


@pytest.fixture
def session() -> Iterator[WrittenSession]:
    session = WrittenSession()
    session.set_process(0, os.getpid())
    yield session
    session.close()


def test_a_forked_child_is_told_of_once_and_may_write_until_it_ends(session: WrittenSession) -> None:
    told, joined = Told(), list[int]()
    offspring = Offspring(
        session.memory, is_ours=lambda pid: True, join=joined.append, told=told, wake=threading.Event()
    )
    offspring.on_round()
    assert (told.lines, offspring.may_write()) == ([], False)
    child = subprocess.Popen(["sleep", "60"])
    try:
        session.set_process(1, child.pid, parent=0)
        offspring.on_round()
        offspring.on_round()
        assert told.lines == [f"{os.getpid()} forked {child.pid}"]
        assert offspring.may_write()
    finally:
        child.kill()
        child.wait()
    assert not offspring.may_write()
    assert joined == []
    offspring.close()


def test_a_child_that_has_ended_already_is_told_of_and_not_waited_for(session: WrittenSession) -> None:
    told = Told()
    offspring = Offspring(
        session.memory, is_ours=lambda pid: True, join=lambda pid: None, told=told, wake=threading.Event()
    )
    session.set_process(1, NO_SUCH_PID, parent=0)
    offspring.on_round()
    assert len(told.lines) == 1
    assert not offspring.may_write()


def test_an_exec_that_cannot_be_followed_is_told_and_not_waited_for(session: WrittenSession) -> None:
    told, wake = Told(), threading.Event()
    offspring = Offspring(session.memory, is_ours=lambda pid: True, join=lambda pid: None, told=told, wake=wake)
    session.memory.header["execs"][3] = (NO_SUCH_PID, ExecState.WAITING)
    offspring.on_round()
    wait_until(wake.is_set)
    assert told.lines[0].startswith(f"The program that process {NO_SUCH_PID} executes is not followed: ")
    wait_until(lambda: not offspring.may_write())
    offspring.on_round()
    offspring.join_threads(5)
    assert len(told.lines) == 1


def test_a_program_that_executes_the_next_one_at_once_is_followed_too(
    session: WrittenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the host is done with the first: a launcher that is a chain of scripts."""
    begun = list[int]()
    execs = session.memory.header["execs"]

    def begins(held: object) -> None:
        begun.append(1)
        if len(begun) == 1:
            execs[3] = (os.getpid(), ExecState.WAITING)
            offspring.on_round()

    monkeypatch.setattr(execgate, "hold", lambda pid, on_seized: on_seized())
    monkeypatch.setattr(execgate, "release", begins)
    offspring = Offspring(
        session.memory, is_ours=lambda pid: True, join=lambda pid: None, told=Told(), wake=threading.Event()
    )
    execs[2] = (os.getpid(), ExecState.WAITING)
    offspring.on_round()
    offspring.join_threads(5)
    assert len(begun) == 1
    offspring.on_round()
    offspring.join_threads(5)
    assert len(begun) == 2
    assert not offspring.may_write()


def test_a_stranger_that_the_session_memory_names_is_not_touched(session: WrittenSession) -> None:
    """It runs, but does not have the session memory: nothing is done to it, and it is not waited for."""
    told, joined = Told(), list[int]()
    kin = Kinship(session.fd, lambda: [os.getpid()])
    offspring = Offspring(session.memory, is_ours=kin.is_ours, join=joined.append, told=told, wake=threading.Event())
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        session.set_process(1, stranger.pid, parent=0)
        for entry, pid in enumerate((stranger.pid, 1, os.getpid(), 0, 0xFFFF_FFFF)):
            session.memory.header["execs"][entry] = (pid, ExecState.WAITING)
        session.memory.header["processes_used"] = (1 << 64) - 1
        for _ in range(3):
            offspring.on_round()
        offspring.join_threads(5)
        assert not offspring.may_write()
        assert told.lines == [
            f"The program that process {stranger.pid} executes is not followed: it is none of the tracked ones."
        ]
        assert joined == []
        assert offspring.pid(1) == 0
        status = Path(f"/proc/{stranger.pid}/status").read_text()
        assert "TracerPid:\t0\n" in status
        assert "Seized" not in status
    finally:
        stranger.kill()
        stranger.wait()


def test_a_child_whose_memory_is_gone_already_is_no_damage(session: WrittenSession) -> None:
    """As a process is for a moment while it ends; here for longer, since its main thread has ended and another has not."""
    ending = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); ctypes.CDLL(None).syscall(60, 0)"
    child = subprocess.Popen([sys.executable, "-c", ending])
    try:
        wait_until(lambda: not Path(f"/proc/{child.pid}/maps").read_bytes())
        kin = Kinship(session.fd, lambda: [os.getpid()])
        offspring = Offspring(
            session.memory, is_ours=kin.is_ours, join=lambda pid: None, told=Told(), wake=threading.Event()
        )
        session.set_process(1, child.pid, parent=0)
        offspring.on_round()
        assert not session.memory.damage.found
        assert offspring.pid(1) == 0 and not offspring.may_write() and offspring.living_pids() == []
    finally:
        child.kill()
        child.wait()


def test_a_forked_child_that_has_the_session_memory_is_ours_unless_it_may_do_more(session: WrittenSession) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:  # it has what this process has mapped
        os.write(told, b"1")
        signal.pause()
        os._exit(0)
    try:
        os.read(ready, 1)
        assert Kinship(session.fd, lambda: [os.getpid()]).is_ours(child)
        other = os.memfd_create("session")
        assert not Kinship(other, lambda: [os.getpid()]).is_ours(child)
        os.close(other)
        assert not Kinship(session.fd, list).is_ours(child), "nobody is tracked that it could be of"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(told)


def test_who_is_no_superuser_has_no_child_of_another_user() -> None:
    user, root, other = (("7",) * 4, ("8",) * 4), (("0",) * 4, ("0",) * 4), (("9",) * 4, ("8",) * 4)
    assert kinship._may_become(user, user)
    assert kinship._may_become(root, user), "a daemon that gives its rights up"
    assert not kinship._may_become(user, root)
    assert not kinship._may_become(user, other)
    assert not kinship._may_become((("7", "0", "0", "0"), ("8",) * 4), root)
