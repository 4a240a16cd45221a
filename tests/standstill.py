"""How long a program that forwards stands still while it is attached to and left.

Called by tests/rounds.py --standstill. tests/programs/poller.c measures itself. Two times a round and thread: as the TSC sees
it, and without what the thread merely waited for a processor, which on a machine with two of them is the larger part.
dpdk-testpmd, with its main thread at the prompt, is measured by its own counter of packets, asked for by telemetry: the longest
time in which it did not change.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import statistics
import struct
import threading
import time
from dataclasses import dataclass

from tracked import Runner, eventually

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
        eventually(lambda before=before: poller.packets() > before)
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


class Testpmd:
    """dpdk-testpmd forwarding between two null devices; its counter is read without pause by a thread of ours."""

    def __init__(self, runner: Runner) -> None:
        prefix = f"standstill{os.getpid()}"
        devices = ("--vdev", "net_null0", "--vdev", "net_null1")
        options = ("--no-huge", "-m", "512", "--no-pci", "--file-prefix", prefix, *devices)
        self.process = runner.start("dpdk-testpmd", *options, "--", "-i", "--total-num-mbufs=2048")
        self.process.wait_for("testpmd> ")
        self.process.tell("start")
        self.pid = self.process.pid
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(f"/var/run/dpdk/{prefix}/dpdk_telemetry.v2")
        self._socket.recv(1 << 16)
        self._longest_s, self.packets = 0.0, 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        since = time.monotonic()
        while self.process.alive:
            try:
                self._socket.send(b"/ethdev/stats,0")
                answer = self._socket.recv(1 << 16)
            except OSError:
                answer = b""
            if not answer:
                return  # it has been told to quit
            packets = int(json.loads(answer)["/ethdev/stats"]["ipackets"])
            now = time.monotonic()
            if packets != self.packets:
                self._longest_s = max(self._longest_s, now - since)
                self.packets, since = packets, now

    def longest_ms(self) -> float:
        """Since this was asked for last."""
        longest, self._longest_s = self._longest_s, 0.0
        return longest * 1e3


def measure_testpmd(runner: Runner, rounds: int, seconds: float) -> str:
    """A table as that of `measure`, of the worker lcore that forwards."""
    testpmd = Testpmd(runner)
    found: dict[str, list[float]] = {"untracked": [], "coming": [], "tracked": [], "leaving": []}
    deadline, done = time.monotonic() + seconds, 0
    while done < rounds and time.monotonic() < deadline:
        done += 1
        testpmd.longest_ms()
        time.sleep(_QUIET_S)
        found["untracked"].append(testpmd.longest_ms())
        host = Host.attach(testpmd.pid)
        found["coming"].append(testpmd.longest_ms())
        before = testpmd.packets
        host.wait(_QUIET_S)
        found["tracked"].append(testpmd.longest_ms())
        eventually(lambda before=before: testpmd.packets > before)
        host.close()
        found["leaving"].append(testpmd.longest_ms())
    testpmd.process.tell("quit")
    lines = [f"dpdk-testpmd, {done} rounds; longest time without a packet in ms: median, 90 %, longest"]
    lines += [f"worker  {phase:10} {_three(sorted(values))}" for phase, values in found.items()]
    return "\n".join(lines)


def _three(values: list[float]) -> str:
    return f"{statistics.median(values):7.2f} {values[len(values) * 9 // 10]:7.2f} {values[-1]:7.2f}"
