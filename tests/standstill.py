"""How long a program that forwards stands still while it is attached to and left: measured by itself (tests/programs/poller.c).

Called by tests/rounds.py --standstill. Two times a round and thread: as the TSC sees it, and without what the thread merely
waited for a processor, which on a machine with two of them is the larger part.
"""

from __future__ import annotations

import mmap
import statistics
import struct
import time
from dataclasses import dataclass

from tracked import Runner

from frida_rtetrack import Host
from frida_rtetrack.errors import NoSafeMoment

_SLOT = struct.Struct("<32sQQQQQ")
_EPOCH_AT = 2048
_QUIET_S = 0.3


@dataclass(frozen=True)
class Longest:
    """The longest standstill of one thread in an epoch, milliseconds."""

    by_clock: float
    stopped: float


class Poller:
    """tests/programs/poller.c at work."""

    def __init__(self, runner: Runner) -> None:
        self._path = runner.folder / "poller"
        self.process = runner.start_ready("poller", self._path)
        self.pid = self.process.pid
        with open(self._path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 4096)
        self._epoch = 0

    def begin(self) -> None:
        """Begins an epoch."""
        self._epoch += 1
        struct.pack_into("<Q", self._memory, _EPOCH_AT, self._epoch)
        while any(slot[5] != self._epoch for slot in self._slots()):
            time.sleep(0.001)

    def longest(self) -> dict[str, Longest]:
        """Of the epoch so far, by thread."""
        return {
            name.rstrip(b"\0").decode(): Longest(by_clock / 1e6, stopped / 1e6)
            for name, _, _, by_clock, stopped, _ in self._slots()
        }

    def packets(self) -> int:
        """Handled by the main lcore so far."""
        return int(self._slots()[0][2])

    def _slots(self) -> list[tuple[bytes, int, int, int, int, int]]:
        return [_SLOT.unpack_from(self._memory, at) for at in (0, _SLOT.size)]


def measure(runner: Runner, rounds: int, seconds: float) -> str:
    """A table: of the time before, of coming, of being there, of leaving."""
    poller = Poller(runner)
    found: dict[str, list[dict[str, Longest]]] = {"untracked": [], "coming": [], "tracked": [], "leaving": []}
    deadline, refused, done = time.monotonic() + seconds, 0, 0
    while done < rounds and time.monotonic() < deadline:
        done += 1
        poller.begin()
        time.sleep(_QUIET_S)
        found["untracked"].append(poller.longest())
        poller.begin()
        try:
            host = Host.attach(poller.pid)
        except NoSafeMoment:
            refused += 1
            continue
        found["coming"].append(poller.longest())
        before = poller.packets()
        poller.begin()
        host.wait(_QUIET_S)
        found["tracked"].append(poller.longest())
        assert poller.packets() > before
        poller.begin()
        host.close()
        found["leaving"].append(poller.longest())
    lines = [f"{done} rounds, {refused} refused; longest standstill in ms: median, 90 %, longest"]
    for thread in ("main", "worker"):
        for phase, epochs in found.items():
            if epochs:
                by_clock = sorted(epoch[thread].by_clock for epoch in epochs)
                stopped = sorted(epoch[thread].stopped for epoch in epochs)
                lines.append(
                    f"{thread:7} {phase:10} by the clock {_three(by_clock)}   but for waiting for a processor {_three(stopped)}"
                )
    return "\n".join(lines)


def _three(values: list[float]) -> str:
    return f"{statistics.median(values):7.2f} {values[len(values) * 9 // 10]:7.2f} {values[-1]:7.2f}"
