"""Keeps the program's threads out of the dynamic linker and out of fork while Frida comes or leaves.

Frida's agent then calls dlopen and dlclose under a lock of its own, which its hook in the dynamic linker takes too: a
thread of the program that loads a library at that moment and the agent wait for each other for ever. And a child that is
forked at that moment has locks of the C library (`__exit_funcs_lock`) taken by a thread that it does not have
(docs/frida-notes.md). So the words through which the program's modules call dlopen, fork and the like lead to a gate in
the stand-in's region for that while: there the program waits for some hundred milliseconds, before it has any lock.

What does not go through it: addresses from dlsym, and the C library's own loading (iconv, name services). vfork and
posix_spawn need not: their child borrows the memory with all who hold locks in it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from frida_rtetrack.errors import NoSafeMoment
from frida_rtetrack.target.arrival.modules import AddressMap
from frida_rtetrack.target.arrival.region import GATED_FUNCTIONS, Region

LOCKS_S = 2.0
"""For a library that is just being loaded, or a large program that is just being forked."""
_ROUNDS = 3
_ROUND_PAUSE_S = 0.004
_LEAVE_S = 3.0
_LAST_INSTRUCTIONS_S = 0.01


class Gate:
    """The gate of one program; open at first."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._memory = region.memory
        self._gates = {name: region.gate(name) for name in GATED_FUNCTIONS}
        self._slots: dict[int, tuple[int, int]] = {}  # where -> what was there, our gate
        self._words: list[tuple[str, int]] = []  # function, where it is called through
        self._asked = 0

    def for_agent(self) -> dict[str, Any]:
        """What the agent needs to close it if the host is gone, as of the last `close`. Raises OSError."""
        words = [[where, self._gates[name], *self._open_words(name, where)] for name, where in self._words]
        told = [[hex(address) for address in addresses] for addresses in words]
        return {name: hex(address) for name, address in self._region.gate_words().items()} | {"words": told}

    def _open_words(self, name: str, where: int) -> set[int]:
        """What may be at `where` while the gate is open: what was there, the gate of a host that was killed for example, or the
        function itself, which the dynamic linker writes there at the first call.
        """
        before, _ = self._slots.get(where, (0, 0))
        return {self._region.function(name), before} - {0}

    def close(self) -> None:
        """Nobody but Frida comes into the dynamic linker or forks from now on, and nobody is at it.

        Raises NoSafeMoment (the gate is open then), OSError.
        """
        self._region.set_gate(closed=True, in_use=True)
        self._words = [
            (name, where)
            for module in AddressMap(self._memory).modules
            if module.path.startswith("/") and "/memfd:" not in module.path
            for name, where in module.imports(GATED_FUNCTIONS)
        ]
        slots = [(where, self._gates[name]) for name, where in self._words]
        try:
            self._lead_to_gate(slots)
            for _ in range(_ROUNDS):  # those that were inside already, or on their way to the first lock
                time.sleep(_ROUND_PAUSE_S)
                self._wait_for_locks()
                self._lead_to_gate(slots)  # one that the dynamic linker was just about to write
        except NoSafeMoment:
            self.open()
            raise

    def _lead_to_gate(self, slots: Sequence[tuple[int, int]]) -> None:
        for where, gate in slots:
            before = self._memory.word(where)
            if before != gate:
                self._slots[where] = (before, gate)
                self._memory.write(where, gate.to_bytes(8, "little"))

    def _wait_for_locks(self) -> None:
        self._asked += 1
        self._region.ask_locks(self._asked)
        deadline = time.monotonic() + LOCKS_S
        while not self._region.locks_answered(self._asked):
            if time.monotonic() > deadline:
                raise NoSafeMoment(
                    f"A thread of process {self._memory.pid} has been loading a library or forking for {LOCKS_S:.0f} seconds."
                )
            time.sleep(0.0005)

    def open(self) -> None:
        """Everybody may go where they want to. Raises OSError."""
        self._region.set_gate(closed=False, in_use=True)
        for where, (before, gate) in self._slots.items():
            try:
                if self._memory.word(where) == gate:  # else the dynamic linker has written there, or somebody like us
                    self._memory.write(where, before.to_bytes(8, "little"))
            except OSError:
                pass  # the module was unloaded
        self._slots.clear()
        deadline = time.monotonic() + _LEAVE_S
        while self._region.inside_gate and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(_LAST_INSTRUCTIONS_S)  # for a thread between its last count and its jump

    def release(self) -> None:
        """Nobody will close it any more: it need not stay, unless somebody still stands in it. Raises OSError."""
        self._region.set_gate(closed=False, in_use=self._region.inside_gate != 0)
