"""tests/programs/restless.c at work, and what a test can see of it: progress of every actor, mistakes, and traces."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tracked import Process, Runner

_SLOT_BYTES, _SLOTS = 256, 8
LOADS = {
    "registers": ("compute", "threads", "signals"),
    "main forks": ("fork", "threads"),
    "another forks": ("malloc", "forks"),
    "main loads": ("dlopen", "malloc"),
    "another loads": ("compute", "loads", "forks"),
    "main waits": ("wait",),
    "main waits, all else": ("wait", "threads", "loads", "malloc"),
    "malloc": ("malloc", "malloc", "signals"),
    "main spawns": ("spawns", "spawns", "malloc"),
    "rare forks": ("compute", "rare forks", "threads", "signals"),
}
"""Name -> actors; what CI has time for."""

EVERY_LOAD = LOADS | {
    "two fork": ("fork", "forks", "signals"),
    "main waits, forks": ("wait", "rare forks", "threads"),
    "everything": ("compute", "threads", "forks", "loads", "malloc", "signals"),
}
"""And what tests/rounds.py has besides. Not a main thread that waits beside one that spawns: while a thread blocks SIGCHLD, as
posix_spawn and system do, the kernel wakes another one for it, and ends what that waits in with EINTR."""

STUCK_S = 5.0
"""An actor that has not come round in so long never will."""


@dataclass(frozen=True)
class Actor:
    """One thread's counters."""

    name: str
    rounds: int
    wrong: int
    what: str


@dataclass(frozen=True)
class Traces:
    """What attaching must not change."""

    threads: frozenset[str]
    """Ids."""
    descriptors: int
    executable: tuple[str, ...]
    """Files and kinds of memory that are mapped executable. Not how many pieces: the kernel cuts those at a page that
    was written to, and does not join them again."""
    caught: str
    """Signals that have a handler."""

    def difference(self, usual: Traces) -> str:
        """From what they are to what they should be."""
        return (
            f"threads {sorted(self.threads - usual.threads)} more, descriptors {self.descriptors} != {usual.descriptors}, "
            f"executable {sorted(set(self.executable) ^ set(usual.executable))}, caught {self.caught} != {usual.caught}"
        )


class Restless:
    """A restless program; `actors` as on its command line, the main thread's first."""

    def __init__(self, runner: Runner, *actors: str, spawned_with: Sequence[str] | None = None) -> None:
        """`spawned_with`: tracked from its start, with these options."""
        self._path = runner.folder / f"counters-{time.monotonic_ns()}"
        self.process: Process
        if spawned_with is None:
            self.process = runner.start_ready("restless", self._path, *actors)
            self.pid = self.process.pid
        else:
            tracked = runner.spawn("restless", self._path, *actors, options=spawned_with)
            tracked.wait_for("^ready$")
            self.process, self.pid = tracked, tracked.target
        with open(self._path, "rb") as file:
            self._counters = mmap.mmap(file.fileno(), _SLOT_BYTES * _SLOTS, prot=mmap.PROT_READ)

    def actors(self) -> list[Actor]:
        """Its threads that count."""
        found = []
        for at in range(0, _SLOT_BYTES * _SLOTS, _SLOT_BYTES):
            name, rounds, wrong, what = struct.unpack_from("<32sQQ208s", self._counters, at)
            if name.strip(b"\0") not in (b"", b"signals"):
                found.append(Actor(_text(name), rounds, wrong, _text(what)))
        return found

    def assert_well(self, stuck_s: float = STUCK_S) -> None:
        """It lives, every actor makes progress, and none has seen anything wrong."""
        before = self.actors()
        deadline = time.monotonic() + stuck_s
        while any(now.rounds <= then.rounds for now, then in zip(self.actors(), before, strict=True)):
            assert self.process.alive, f"it ended with status {self.process.finish()}: {self.process.stderr}"
            assert time.monotonic() < deadline, f"stuck: {before}, {stuck_s} s later {self.actors()}"
            time.sleep(0.005)
        assert self.process.alive
        assert not [actor for actor in self.actors() if actor.wrong], self.actors()

    def traces(self) -> Traces:
        """As they are now; those of its own threads and libraries come and go."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        maps = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        return Traces(
            frozenset(os.listdir(f"/proc/{self.pid}/task")),
            len(os.listdir(f"/proc/{self.pid}/fd")),
            tuple(sorted({" ".join(line.split()[1:2] + line.split()[5:]) for line in maps if _is_code(line)})),
            next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")),
        )

    def assert_left_as(self, usual: Traces) -> None:
        """Its traces are `usual` again: at once, or when those of its own threads and libraries allow to see it."""
        deadline = time.monotonic() + STUCK_S
        while not _no_more(now := self.usual_traces(), usual):
            assert time.monotonic() < deadline, now.difference(usual)

    def usual_traces(self) -> Traces:
        """The least that is seen in some looks: of the threads, those that are always there."""
        seen = [self.traces()]
        for _ in range(20):
            time.sleep(0.005)
            seen.append(self.traces())
        return Traces(
            frozenset.intersection(*(each.threads for each in seen)),
            min(each.descriptors for each in seen),
            min((each.executable for each in seen), key=len),
            seen[-1].caught,
        )


def _no_more(now: Traces, usual: Traces) -> bool:
    """A thread of its own that was there for a while only may be gone."""
    return now.threads <= usual.threads and replace(now, threads=usual.threads) == usual


def _is_code(line: str) -> bool:
    return line.split()[1][2] == "x" and "plugin" not in line


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode()
