"""Keeps the program's threads out of the dynamic linker while Frida comes or leaves.

Frida's agent then calls dlopen and dlclose under a lock of its own, which its hook in the dynamic linker takes too: a
thread of the program that loads a library at that moment and the agent wait for each other for ever (docs/frida-notes.md).
So the words through which the program's modules call dlopen, dlmopen and dlclose lead to a gate in the stand-in's region
for that while: there the program waits for some hundred milliseconds, before it has any lock.

What does not go through it: addresses from dlsym, and the C library's own loading (iconv, name services).
"""

from __future__ import annotations

import time

from frida_rtetrack.errors import NoSafeMoment
from frida_rtetrack.target.arrival.modules import AddressMap
from frida_rtetrack.target.arrival.region import LOADER_FUNCTIONS, Region

LOADER_S = 2.0
"""For a library that is just being loaded."""
_ROUNDS = 3
_ROUND_PAUSE_S = 0.002
_LEAVE_S = 3.0
_LAST_INSTRUCTIONS_S = 0.01


class LoaderGate:
    """The gate of one program; open at first."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self._memory = region.memory
        self._gates = {name: region.gate(name) for name in LOADER_FUNCTIONS}
        self._slots: list[tuple[int, int, int]] = []  # where, what was there, our gate
        self._asked = 0

    def close(self) -> None:
        """Nobody but Frida comes into the dynamic linker from now on, and nobody is in it. Raises NoSafeMoment, OSError."""
        self._region.set_gate(closed=True, in_use=True)
        for module in AddressMap(self._memory).modules:
            if module.path.startswith("/") and "/memfd:" not in module.path:
                for name, where in module.imports(LOADER_FUNCTIONS):
                    self._lead_to_gate(where, self._gates[name])
        try:
            for _ in range(_ROUNDS):  # those that were in the dynamic linker already, or on their way to its lock
                self._wait_for_loader()
                time.sleep(_ROUND_PAUSE_S)
        except NoSafeMoment:
            self.open()
            raise

    def _lead_to_gate(self, where: int, gate: int) -> None:
        before = self._memory.word(where)
        if before != gate:
            self._slots.append((where, before, gate))
            self._memory.write(where, gate.to_bytes(8, "little"))

    def _wait_for_loader(self) -> None:
        self._asked += 1
        self._region.ask_loader(self._asked)
        deadline = time.monotonic() + LOADER_S
        while not self._region.loader_answered(self._asked):
            if time.monotonic() > deadline:
                raise NoSafeMoment(
                    f"A thread of process {self._memory.pid} has been loading a library for {LOADER_S:.0f} seconds."
                )
            time.sleep(0.0005)

    def open(self) -> None:
        """Everybody may go where they want to. Raises OSError."""
        self._region.set_gate(closed=False, in_use=True)
        for where, before, gate in self._slots:
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
        self._region.set_gate(closed=False, in_use=self._region.inside_gate != 0)
