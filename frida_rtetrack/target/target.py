"""One process under tracking: Frida's session in it, its agent, its address space, and how it ends.

A host has one, or several that share one DPDK heap. Nothing here knows of events.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import frida

from frida_rtetrack.errors import (
    AgentFailed,
    AgentStays,
    AgentTimeout,
    ArrivalRefused,
    NoSafeMoment,
    NoSuchProcess,
    NotLive,
    RtetrackError,
    TargetEnded,
)
from frida_rtetrack.target import footprint, process, undoing
from frida_rtetrack.target.addressspace import AddressSpace
from frida_rtetrack.target.agentlink import SESSION_OPTIONS, AgentLink, GivenUp, hang_up, limited
from frida_rtetrack.target.arrival import fridacalls, linger
from frida_rtetrack.target.arrival.earlier import wait_for_earlier_agent
from frida_rtetrack.target.arrival.standin import AVAILABLE as arrival_is_known_here
from frida_rtetrack.target.arrival.standin import StandIn
from frida_rtetrack.target.arrival.stopwatch import StopWatch, is_stopped, stopped_meanwhile
from frida_rtetrack.target.launch import GatedProgram

ATTACH_RETRIES = 2
UNLOAD_SECONDS = 30.0
REAP_SECONDS = 5.0
AGENT_GONE_SECONDS = 2.0
FORGOTTEN_SECONDS = 1.0
"""An agent that is still there after so long was presumably not told to leave, and is hung up on: that is half a second
before a signal's patience ends."""
EARLIER_AGENT_SECONDS = 5.0
"""For the agent of a host that was killed just now; one that is still there then is at rest."""
STAYS_MIB, STAYS_LOCKED_MIB = 0.2, 33.0
"""docs/costs.md; the latter of a program that has locked all its memory (mlockall)."""
AGENT_THREAD = "gum-js-loop"
"""The name of the thread that the agent's script runs on."""
GONE_TOO_SECONDS = 0.3
"""Between the end of an agent's connection and that of its process."""
LEAVE_SECONDS = 3.0
"""For a safe moment to leave a program that was spawned."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How the tracking ended: the target's exit status or signal, or neither where it runs on or is not our child."""

    exit_status: int | None
    signal: int | None
    why: str
    """exited, killed, detached, replaced (exec), gone (ended, but how is not known) or running (it was left)."""
    stays_mib: float = 0.0
    """Memory that it has more of than before, where it was detached: roughly."""

    @property
    def signal_name(self) -> str:
        """`SIGSEGV`, or `signal 40` where it has no name; empty where there was none."""
        if self.signal is None:
            return ""
        return signal.Signals(self.signal).name if self.signal < 32 else f"signal {self.signal}"


def _attach(pid: int, hopeless: Callable[[], bool]) -> frida.Session:
    """Frida sometimes misses the stop of a thread that is in fork, or loses a connection that has just begun: once more.

    Not by Frida's own Cancellable: the device can attach to no process any more after that ("already created").
    """
    for _ in range(ATTACH_RETRIES):
        try:
            return frida.get_local_device().attach(pid, **SESSION_OPTIONS)
        except (frida.TimedOutError, frida.TransportError, frida.ProtocolError):
            time.sleep(0.1)
            if hopeless():
                raise
    return frida.get_local_device().attach(pid, **SESSION_OPTIONS)


def _send_away(pid: int, session: frida.Session | None, standin: StandIn | None) -> None:
    """Has Frida leave, which came in vain, and then the thread that it came by."""
    if session is not None:
        session.detach()
        process.wait_for_agents_end(pid, AGENT_GONE_SECONDS)
    if standin is not None:
        standin.dismiss(frida_was_here=True)


def _take_back_standin(standin: StandIn) -> None:
    """Where Frida found the program stopped, it still holds the thread that it came by."""
    if standin.is_held():
        with contextlib.suppress(frida.InvalidArgumentError, frida.InvalidOperationError):
            frida.get_local_device().resume(standin.tid)


class Target:
    """A process that Frida is attached to. `load` puts the agent into it."""

    def __init__(
        self,
        pid: int,
        session: frida.Session,
        argv: tuple[str, ...],
        gated: GatedProgram | None = None,
        standin: StandIn | None = None,
    ) -> None:
        """`gated`: the program as it was launched, if it is a child of ours; `standin`: the thread that Frida came by."""
        self.pid = pid
        self.argv = argv
        self.session = session
        self.gated = gated
        self._standin = standin
        self._settled = False
        self._has_locked = False
        self._loaded = threading.Event()
        """Not set while an agent is being loaded: Frida must not leave meanwhile."""
        self._loaded.set()
        self.ours = gated is not None
        """Started by us, or by what we started."""
        self.number = 0
        """Index in the session memory's process table."""
        self.hooks: list[dict[str, str]] = []
        self.space = AddressSpace(pid)
        self.detached = False
        """Let go by us, or by Frida."""
        self.replaced = False
        """It executed another program."""
        self.cleaned_up = False
        """It called rte_eal_cleanup."""
        self._pidfd = os.pidfd_open(pid)
        self._agent: AgentLink | None = None
        self._agents_before: frozenset[str] = frozenset()  # such as could not leave
        self._on_detached: Callable[..., None] | None = None

    @classmethod
    def launched(cls, gated: GatedProgram, argv: tuple[str, ...]) -> Target:
        """A program that was launched and waits, with Frida in it."""
        return cls(gated.pid, gated.session, argv, gated)

    @classmethod
    def held(cls, pid: int) -> Target:
        """Attaches Frida to a program that is held at its entry point (execgate). Raises RtetrackError."""
        return cls(pid, cls._attach(pid), tuple(process.command_line(pid)))

    @classmethod
    def attach(cls, pid: int) -> Target:
        """Attaches Frida to the running process `pid`, through a thread of our own in it. Raises RtetrackError."""
        wait_for_earlier_agent(pid, EARLIER_AGENT_SECONDS)
        before = process.agents(pid)
        session, standin = cls._come_into(pid)
        target = cls(pid, session, tuple(process.command_line(pid)), None, standin)
        target._agents_before = before
        return target

    @classmethod
    def _come_into(cls, pid: int) -> tuple[frida.Session, StandIn | None]:
        if not arrival_is_known_here:
            return cls._attach(pid), None
        linger.start_once()
        standin = StandIn.arrive(pid)
        watch: StopWatch | None = None
        try:
            standin.close_gate()
            standin.expect_frida()
            fridacalls.keep_stops(standin.tid)
            watch = StopWatch(pid, standin.tid)
            session = cls._attach(pid, standin, watch)
            _take_back_standin(standin)
            standin.note_frida()
        except GivenUp:  # Frida is still about to come by the stand-in, which is sent away when that has ended
            raise
        except BaseException as error:
            stopped = is_stopped(pid)
            if watch is not None:
                watch.finish(failed=isinstance(error, RtetrackError))
                stopped |= watch.seen
            standin.dismiss(frida_was_here=True)
            if stopped and isinstance(error, RtetrackError):
                raise stopped_meanwhile(pid) from error
            raise
        watch.finish()
        return session, standin

    @staticmethod
    def _attach(pid: int, standin: StandIn | None = None, watch: StopWatch | None = None) -> frida.Session:
        given_up, gone = threading.Event(), threading.Event()

        def send_away(session: frida.Session | None) -> None:
            try:
                if watch is not None:
                    watch.finish()
                if standin is not None:
                    _take_back_standin(standin)
                _send_away(pid, session, standin)
            finally:
                gone.set()

        whom = pid if standin is None else standin.tid
        try:
            session: frida.Session = limited(
                lambda: _attach(whom, lambda: given_up.is_set() or (watch is not None and watch.seen)),
                late=send_away,
            )
            return session
        except GivenUp:
            given_up.set()
            undoing.undo(lambda: gone.wait(UNLOAD_SECONDS))
            raise
        except TargetEnded as error:
            if process.is_ending(pid):
                raise NoSuchProcess(f"There is no process {pid} any more.") from None
            raise AgentTimeout(f"Process {pid} did not let Frida in.") from error
        except frida.ProcessNotRespondingError:
            raise AgentTimeout(f"Process {pid} did not let Frida in.") from None
        except frida.PermissionDeniedError as error:
            raise process.not_permitted(pid) from error
        except frida.NotSupportedError as error:
            raise AgentFailed(f"Frida cannot attach to process {pid}: {error}.") from error

    def load(self, on_message: Callable[[Target, dict[str, Any]], None], on_detached: Callable[[Target], None]) -> None:
        """Loads the agent; what it says goes to `on_message`, and `on_detached` is told when Frida has lost it."""

        def detached(reason: str, crash: Any) -> None:
            # Of an exec, Frida may see no more than that its agent is gone: at an end the process is gone with it.
            let_go = self.detached or reason == "application-requested"
            self.detached = True
            self.replaced = reason == "process-replaced" or (
                not let_go and not self.wait_gone(GONE_TOO_SECONDS) and process.lives_without_session(self.pid)
            )
            on_detached(self)

        self._on_detached = detached
        self.session.on("detached", detached)
        self._loaded.clear()
        try:
            self._agent = AgentLink(
                self.session, lambda message: on_message(self, message), late=lambda result: self._loaded.set()
            )
        except GivenUp:
            raise  # it is being loaded still
        except BaseException:
            self._loaded.set()
            raise
        self._loaded.set()

    def gate_for_agent(self) -> dict[str, Any] | None:
        """See StandIn; None where there is none."""
        return None if self._standin is None else self._standin.gate_for_agent()

    def settle(self) -> None:
        """The agent has begun: the program may load libraries and fork again."""
        self._settled = True
        if self._standin is not None:
            self._standin.settle()
        try:
            self._has_locked = footprint.has_locked_memory(self.pid)
            if self._has_locked:
                self.call("release_locked", footprint.needlessly_resident(self.pid))
        except OSError:
            pass  # it has ended
        footprint.release_own()

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls the agent. Raises RtetrackError."""
        if self._agent is None or self.detached:
            raise NotLive(f"Process {self.pid} is not being tracked any more.")
        return self._agent.call(method, *arguments, working=lambda: process.cpu_ticks(self.pid, AGENT_THREAD))

    @property
    def is_tracked(self) -> bool:
        """Whether the agent is in it and it is alive."""
        return not self.detached and not self.is_gone()

    def is_gone(self) -> bool:
        """Whether the process has ended."""
        return self._pidfd < 0 or bool(select.select([self._pidfd], [], [], 0)[0])

    def look(self) -> None:
        """Learns what is mapped where, and has the agent say where DPDK's heap lies: to judge addresses later."""
        self.space.refresh()
        self.call("note_regions")

    def send_signal(self, number: int) -> None:
        """Sends a signal. Raises NotLive where the process is gone."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except (ProcessLookupError, OSError):
            raise NotLive(f"Process {self.pid} has already ended.") from None

    def wait_gone(self, seconds: float) -> bool:
        """Waits for the process to end; False: not within `seconds`."""
        return self._pidfd < 0 or bool(select.select([self._pidfd], [], [], seconds)[0])

    def unload(self) -> RtetrackError | None:
        """Takes the agent out and lets go of the process. Returns what went wrong, or that something stays."""
        self._loaded.wait(UNLOAD_SECONDS)
        stays = self._guard() if self._settled else None  # from its beginning on, the stand-in is
        problem = None
        if self._agent is not None and not self.detached:
            try:
                self._agent.call("leave", seconds=UNLOAD_SECONDS)
                if stays is None:
                    self._agent.unload(UNLOAD_SECONDS)
                else:
                    self._agent.stay(UNLOAD_SECONDS)
            except RtetrackError as error:
                problem = error
        self.detached = True
        try:
            limited(self.session.detach, UNLOAD_SECONDS)
        except (RtetrackError, frida.InvalidOperationError):
            pass
        if stays is None:
            stays = self._see_agent_off()
        self._dismiss_standin(frida_stays=stays is not None)
        return problem or stays

    def _see_agent_off(self) -> RtetrackError | None:
        """Waits until Frida's agent has gone. Returns that it stays."""
        if process.wait_for_agents_end(self.pid, FORGOTTEN_SECONDS, self._agents_before):
            return None
        hang_up(self.pid)
        if process.wait_for_agents_end(self.pid, AGENT_GONE_SECONDS, self._agents_before):
            return None
        return AgentStays(f"Frida's agent stays in process {self.pid}, at rest: it did not leave.")

    def _guard(self) -> RtetrackError | None:
        """Before Frida leaves. Returns why it must not: to unload it now could deadlock the program."""
        if not arrival_is_known_here:
            return None
        try:
            if self._standin is None:  # a program that was held when Frida came
                self._standin = StandIn.arrive(self.pid, LEAVE_SECONDS)
            self._standin.guard()
            fridacalls.keep_stops(self._standin.tid)
        except TargetEnded:
            return None
        except (NoSafeMoment, ArrivalRefused) as error:
            return AgentStays(f"Frida's agent stays in process {self.pid}, at rest: {error.args[0]}")
        return None

    def undo(self) -> None:
        """Takes out what of it has come into the process, after a failure; in the background if it must be."""

        def leave() -> None:
            self.unload()
            self.close()

        undoing.undo(leave)

    def _dismiss_standin(self, *, frida_stays: bool = False) -> None:
        if self._standin is not None:
            self._standin.dismiss(frida_was_here=not frida_stays)
            self._standin = None

    def ending(self, *, let_go: bool) -> Ending:
        """How it ended, or that it runs on. `let_go`: it was detached at the user's wish."""
        if let_go and not self.is_gone():
            return Ending(None, None, "detached", STAYS_LOCKED_MIB if self._has_locked else STAYS_MIB)
        if self.replaced and not self.is_gone():
            return Ending(None, None, "replaced")
        if not self.wait_gone(REAP_SECONDS) or self.gated is None:
            return Ending(None, None, "gone")
        status = self.gated.wait_status()
        if status is None:
            return Ending(None, None, "gone")
        if os.WIFSIGNALED(status):
            return Ending(None, os.WTERMSIG(status), "killed")
        return Ending(os.WEXITSTATUS(status), None, "exited")

    def wait_exit(self) -> None:
        """Waits until the process is gone, however long it takes."""
        if self._pidfd >= 0:
            select.select([self._pidfd], [], [])

    def try_signal(self, number: int) -> None:
        """Sends a signal if it is still there."""
        try:
            self.send_signal(number)
        except NotLive:
            pass

    def close(self) -> None:
        """Gives the process's descriptor back, and takes leave of Frida's objects, which would keep this one alive."""
        if self._on_detached is not None:
            self.session.off("detached", self._on_detached)
            self._on_detached = None
        if self._agent is not None:
            self._agent.close()
            self._agent = None
        self._dismiss_standin()
        if self._pidfd < 0:
            return
        if self.gated is not None and not self.gated.resumed:
            self.gated.kill()  # else it would begin, untracked, when Frida's hold on it ends with this process
        if self.gated is not None and self.is_gone():
            self.gated.wait_status()
            self.gated.close()
        os.close(self._pidfd)
        self._pidfd = -1
