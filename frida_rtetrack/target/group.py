"""The processes of one session: how they are joined, asked, signalled and let go, as one.

All of them write into one session memory, and have one DPDK heap. What they write is nobody's concern here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.errors import (
    AgentFailed,
    BadUsage,
    LibraryNotFound,
    NoDpdk,
    NoSuchProcess,
    NotLive,
    RtetrackError,
    TargetEnded,
)
from frida_rtetrack.options import Options
from frida_rtetrack.stream.events import SIZE_BITS, EventBatch, threads
from frida_rtetrack.stream.ring import SessionMemory
from frida_rtetrack.target import process
from frida_rtetrack.target.agentoptions import agent_options, chosen_engine
from frida_rtetrack.target.engine import start_agent
from frida_rtetrack.target.kinship import Kinship
from frida_rtetrack.target.offspring import Offspring
from frida_rtetrack.target.offspring import Told as ToldOfOffspring
from frida_rtetrack.target.target import Ending, Target

LOOK_AGAIN_SECONDS = 0.1
ModuleOffsets = dict[str, dict[str, int]]
"""Module -> function -> offset from the module's base, bytes."""


class Told(ToldOfOffspring, Protocol):
    """Who is told; may be called from any thread."""

    def hooked(self, hooks: list[dict[str, str]]) -> None:
        """DPDK was found in a module and its functions are hooked ({function, module, address, how} each)."""


class TargetGroup:
    """The tracked processes; the first is the one that the user named first. `open_session` comes before all else."""

    def __init__(
        self,
        options: Options,
        *,
        symbols_of: Callable[[int, Sequence[str]], ModuleOffsets],
        wanted: Sequence[str] = (),
        told: Told,
        wake: threading.Event,
    ) -> None:
        """`symbols_of(pid, options.symbols)`: where functions are that an agent cannot find by itself; `wanted`: which ones
        a user would have to tell of. `wake`: see Pump.
        """
        self.targets: list[Target] = []
        self.memory: SessionMemory
        self.offspring: Offspring
        self._kinship: Kinship
        self.engine = ""
        self.compiler = ""
        self._options = options
        self._symbols_of = symbols_of
        self._wanted = wanted
        self._told = told
        self._wake = wake
        self._memory_fd = -1
        self._first_fd = -1  # the same memory, in the first target
        self._hooks_held = False
        self.wrong_symbols: list[str] = []
        """What is wrong with the options' symbols, a sentence each, as far as their modules have come."""

    # ---- beginning

    def open_session(self, target: Target) -> None:
        """Makes the session memory in the first target, which has the agent then, but nothing hooked."""
        try:
            self._open_session(target)
        except BaseException:
            target.undo()
            raise

    def _open_session(self, target: Target) -> None:
        target.load(self._on_agent_message, self._on_frida_detached)
        in_target = target.call("create_session", process.SESSION_NAME)
        try:
            self._memory_fd = os.open(f"/proc/{target.pid}/fd/{int(in_target)}", os.O_RDWR | os.O_CLOEXEC)
            self.memory = SessionMemory.create(self._memory_fd, self._options.buffer_mib)
        except OSError as error:
            raise AgentFailed(
                f"The session memory of process {target.pid} cannot be used: {error.strerror}."
            ) from error
        self._kinship = Kinship(self._memory_fd, self._known_pids)
        self.offspring = Offspring(
            self.memory,
            is_ours=self._kinship.is_ours,
            join=self._join_executed,
            told=self._told,
            wake=self._wake,
        )
        self.targets.append(target)
        self._kinship.take_note()
        self._first_fd = in_target

    def start_first(self) -> None:
        """Has the first target hooked: from here on it writes."""
        self._start_agent(self.first, self._first_fd)

    def add(self, target: Target, *, executed: bool = False) -> None:
        """Lets another process write into the session memory. `executed`: it begins, and its heap is its own."""
        try:
            target.load(self._on_agent_message, self._on_frida_detached)
            in_target = target.call("join_session", f"/proc/{os.getpid()}/fd/{self._memory_fd}")
            self._start_agent(target, in_target, executed=executed)
        except BaseException:
            target.undo()
            raise
        self.targets.append(target)

    def hold_hooks(self) -> None:
        """Tells nobody that something is hooked until `tell_hooks`: it is not tracking to the user before."""
        self._hooks_held = True

    def tell_hooks(self) -> None:
        """Tells of everything that was hooked meanwhile."""
        self._hooks_held = False
        for target in self.targets:
            self._told.hooked(target.hooks)

    def check_dpdk_was_found(self) -> None:
        """Raises LibraryNotFound or NoDpdk where there is a process without DPDK in it, other than one yet to begin."""
        for target in self.targets:
            if not target.hooks and target.gated is None:
                raise self._without_dpdk(target)

    def look(self) -> None:
        """Learns what is mapped where in each process, and where DPDK's heap lies: to judge addresses later."""
        for target in self.targets:
            target.look()

    def wait_for_calls_under_way(self) -> None:
        """What was called before it was hooked is seen by nobody: what it allocates is to be in DPDK's list of blocks."""
        for target in self.targets:
            target.call("move_on")

    def _join_executed(self, pid: int) -> None:
        target = Target.held(pid)
        target.ours = self.first.ours
        self.add(target, executed=True)

    def _start_agent(self, target: Target, memory_fd: int, *, executed: bool = False) -> None:
        options = agent_options(self._options, self.memory, self._symbols_of(target.pid, self._options.symbols)) | {
            "ownHeap": executed,
            "gate": target.gate_for_agent(),
        }
        state = start_agent(target.call, memory_fd, options, chosen_engine(self._options))
        target.settle()
        if self.wrong_symbols:
            raise BadUsage(self.wrong_symbols[0], "It is counted from the module's first address in /proc/PID/maps.")
        target.number = state["process"]
        self.engine = state["engine"]
        self.compiler = state["builtBy"]

    def _without_dpdk(self, target: Target) -> RtetrackError:
        names = [os.path.basename(path) for path in target.call("module_names")]
        library = self._options.library
        if library is not None:
            close = [name for name in names if "rte" in name or library.split(".")[0] in name]
            return LibraryNotFound(
                f"--lib {library} names no module of process {target.pid} with DPDK's allocation functions in it.",
                f"Modules that come close: {', '.join(close[:8]) or 'none'}. Without --lib, every module is searched.",
            )
        close, wanted = [name for name in names if name.startswith("librte_")], ", ".join(self._wanted)
        return NoDpdk(
            f"Process {target.pid} has no module that defines rte_malloc_socket and rte_free "
            f"({len(names)} modules were searched, exported names and .symtab).",
            f"Modules that come close: {', '.join(close[:8])}." if close
            else f"Is it the right process? Where DPDK is linked in and stripped, its debug file helps, or --symbol for all of: {wanted}.",
        )  # fmt: skip

    # ---- what Frida says, on its threads

    def _on_agent_message(self, target: Target, message: dict[str, Any]) -> None:
        if message["type"] == "hooked":
            target.hooks.extend(message["hooks"])
            target.space.refresh()
            if not self._hooks_held:
                self._told.hooked(message["hooks"])
        elif message["type"] == "another heap":
            self._told.problem(
                f"Process {target.pid} ({message['module']}) uses DPDK as well: its heap is another one, and is not "
                f"tracked. Attach to it with a command of its own."
            )
        elif message["type"] == "wrong symbol":
            self.wrong_symbols.append(message["text"])
        elif message["type"] == "error":
            self._told.problem(f"In process {target.pid}: {message['text']}")

    def _on_frida_detached(self, target: Target) -> None:
        self._wake.set()

    # ---- who they are

    @property
    def first(self) -> Target:
        """The process that the user named first. Raises NotLive before there is one."""
        if not self.targets:
            raise NotLive("Nothing is tracked yet.", "Host.spawn or Host.attach makes a Host that tracks.")
        return self.targets[0]

    @property
    def hooks(self) -> list[dict[str, str]]:
        """{function, module, address, how} of every hooked function."""
        return [hook for target in self.targets for hook in target.hooks]

    def of_thread(self, number: int) -> Target | None:
        """The target of the thread that events call `number`; None for a forked child."""
        process_number = self.memory.thread(number).process
        return next((target for target in self.targets if target.number == process_number), None)

    def of_event(self, event: np.void) -> Target | None:
        """The target that wrote `event`; None for a forked child."""
        return self.of_thread(int(event["size_and_thread"]) >> SIZE_BITS)

    def processes_of(self, events: EventBatch) -> NDArray[np.uint16]:
        """The indexes in the process table of those that wrote `events`, (n,) like them."""
        return self.memory.processes_of_threads(threads(events))

    def child_is_gone(self, number: int) -> bool:
        """Whether the forked child with this index in the process table has ended, or is none that is known."""
        return self.offspring.pid(number) not in self.offspring.living_pids()

    def refresh_spaces(self) -> None:
        """Learns anew what is mapped where."""
        for target in self.targets:
            target.space.refresh()

    # ---- who still writes

    def any_tracked(self) -> bool:
        """Whether there is a process alive with the agent in it."""
        return any(target.is_tracked for target in self.targets)

    def anybody_writes(self) -> bool:
        """Whether events may still come, of the targets or of what they forked and executed."""
        return self.any_tracked() or self.offspring.may_write() or self._may_still_start()

    def thread_alive(self, number: int, tid: int) -> bool:
        """Whether thread `tid` of the process with index `number` exists."""
        return process.thread_exists(self.pid_of(number), tid)

    def pid_of(self, number: int) -> int:
        """The pid of the process with this index, as far as it is known from elsewhere than its own word; else 0."""
        for target in self.targets:
            if target.number == number:
                return target.pid
        return self.offspring.pid(number)

    def _known_pids(self) -> list[int]:
        return [target.pid for target in self.targets]

    def _may_still_start(self) -> bool:
        """Whether a launcher left processes behind that may execute the program with DPDK yet, or a daemon its child, which
        has our memory and has not said anything yet (--follow-fork)."""
        gated = self.first.gated if self.targets else None
        if gated is None or not self._options.follow_fork:
            return False
        orphans = gated.orphans()
        if self.memory.counter("heap_owner"):
            return any(process.maps_session(pid) for pid in orphans)
        return bool(orphans)

    # ---- asking and telling

    def ask(self, method: str, *arguments: Any) -> Any:
        """Calls the first agent that is still there. Raises NotLive if none is.

        Of those that found DPDK, if any did, and of those rather one that was joined while it ran than one that was
        launched: that one may not have its heap yet.
        """
        for target in sorted(self.targets, key=lambda target: (not target.hooks, target.gated is not None)):
            if target.is_tracked and not target.cleaned_up:
                try:
                    return target.call(method, *arguments)
                except TargetEnded:
                    continue
        raise NotLive("The program is not being tracked any more.")

    def command_all(self, method: str) -> None:
        """Calls every agent that is still there. Raises NotLive if none is."""
        if not self.any_tracked():
            raise NotLive("The program is not being tracked any more.")
        for target in self.targets:
            if target.is_tracked:
                target.call(method)

    def signal_first(self, number: int) -> None:
        """Sends a signal to the first target, or to what it executed if it is gone. Raises NotLive where nothing is left."""
        next(iter(self.to_be_ended()), self.first).send_signal(number)

    def signal_all(self, number: int) -> None:
        """Sends a signal to the first target and to what it executed. Raises NotLive where nothing is left of them."""
        left = self.to_be_ended()
        if not left:
            raise NotLive(f"Process {self.first.pid} has already ended.")
        for target in left:
            target.try_signal(number)

    def let_run(self) -> None:
        """Sends SIGCONT to what is stopped of the first target and of what it executed."""
        for target in self.to_be_ended():
            with contextlib.suppress(NoSuchProcess):
                if process.state(target.pid) == "T":
                    target.try_signal(signal.SIGCONT)

    def to_be_ended(self) -> list[Target]:
        """What is left of the target and of the programs that a spawned one executed (--follow-fork), each once."""
        candidates = [target for target in self.targets if target.ours or target is self.first]
        return list({target.pid: target for target in candidates if not target.is_gone()}.values())

    def end(self, patience_seconds: float) -> None:
        """SIGTERM, and SIGKILL to what is still there after `patience_seconds`."""
        deadline = time.monotonic() + patience_seconds
        try:
            self.signal_all(signal.SIGTERM)
            self.let_run()
            for target in self.to_be_ended():
                target.wait_gone(max(deadline - time.monotonic(), 0))
            self.signal_all(signal.SIGKILL)
        except NotLive:
            pass

    def wait_launched_gone(self, left: threading.Event) -> bool:
        """Waits until a program that we launched is gone, or `left` is set. False where it is no child of ours."""
        if self.first.gated is None:
            return False
        while not left.is_set() and not self.first.wait_gone(LOOK_AGAIN_SECONDS):
            pass
        return True

    # ---- letting go

    def unload(self) -> list[RtetrackError]:
        """Takes the agents out. Returns what went wrong, except that a process was gone already."""
        problems = [target.unload() for target in self.targets if target.is_tracked]
        return [problem for problem in problems if problem is not None and not isinstance(problem, TargetEnded)]

    def ending(self, *, let_go: bool) -> Ending:
        """How the first target ended, or that it runs on. `let_go`: at the user's wish."""
        return self.first.ending(let_go=let_go)

    def close(self) -> None:
        """Gives everything back. What the processes wrote can still be read."""
        for target in self.targets:
            target.close()
        if self.targets:
            self.offspring.close()
        if self._memory_fd >= 0:
            os.close(self._memory_fd)
            self._memory_fd = -1
