"""Attaches to restless programs and leaves them, for hours if you like, and says in a table what they noticed of it.

    python tests/rounds.py [--rounds N | --seconds S] [--load NAME]... [--evidence FOLDER] [--kills | --standstill]

With --kills the host is killed (SIGKILL) at a random instant of each round, and the next one must find the program as it was;
with --standstill a program that forwards measures itself how long it stood still (tests/standstill.py).

The loads come in turn, some rounds each, with a fresh program for each turn. After a failure it goes on with a fresh program
and keeps what there is to see of the old one in FOLDER: /proc's view, gdb's stacks of it and of its children, a core.
The exit status is 0 if nothing but refusals came.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests" / "integration")]

import standstill  # noqa: E402
from restless import EVERY_LOAD, STUCK_S, Restless, Traces  # noqa: E402
from tracked import Accusations, Runner, Tracked, foreign_mappings  # noqa: E402

from frida_rtetrack import Host, Options  # noqa: E402
from frida_rtetrack.errors import NoSafeMoment, RtetrackError  # noqa: E402

GDB_S = 60
SLOW_S = 4.0
_GONE = (OSError, subprocess.TimeoutExpired)
CORE_FILTER = "0x31"
"""proc_pid_coredump(5): private memory, no shared one: DPDK's heap would be in it."""


@dataclass
class Row:
    """What came of one load."""

    rounds: int = 0
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    longest_s: float = 0.0
    """Of one round, the checks left out; with kills: until all of the program goes on."""


class AtRest(Exception):
    """Frida's agent stayed, which was said, and the next round was as if it had not."""


class Failure(Exception):
    """One of KINDS came about; the message has the kind and what was seen."""

    def __init__(self, kind: str, seen: str) -> None:
        super().__init__(f"{kind}: {seen}")
        self.kind = kind


KINDS = ("death", "stuck", "changed", "thread", "descriptor", "mapping", "handler", "accused", "stays", "error")
"""`stays`: our session was still there long after the host was killed; `at rest`: Frida's agent was, or
did not leave with the host, with nothing to do."""

KILL_WITHIN_S = 1.5
GATED_S = 25.0
"""Who loads a library or forks waits so long, at most, for an agent that leaves without a host (standin.S: FRIDA_PATIENCE_MS)."""
AGENT_GONE_S = 15.0
COME_AND_GO = """
import sys
from frida_rtetrack import Host
print("begins", flush=True)
while True:
    Host.attach(int(sys.argv[1])).close()
"""


class Watched:
    """A restless program between its first round and its last."""

    def __init__(self, runner: Runner, actors: tuple[str, ...]) -> None:
        self.program = Restless(runner, *actors)
        Path(f"/proc/{self.program.pid}/coredump_filter").write_text(CORE_FILTER)
        self.check_progress("before")
        with Host.attach(self.program.pid):  # Frida's dependencies, libdl and the like, are never unloaded
            pass
        self.check_progress("first")
        self.usual: Traces = self.program.usual_traces()

    def check_progress(self, when: str, stuck_s: float = STUCK_S) -> None:
        """Raises Failure."""
        try:
            self.program.assert_well(stuck_s)
        except AssertionError as error:
            text = str(error)
            alive = self.program.process.alive
            kind = "stuck" if alive and text.startswith("stuck") else "changed" if alive else "death"
            raise Failure(kind, f"{when}: {text}") from None

    def check_traces(self) -> None:
        """Raises Failure."""
        try:
            self.program.assert_left_as(self.usual)
        except AssertionError as error:
            now, kind = self.program.usual_traces(), "mapping"
            if now.threads - self.usual.threads:
                kind = "thread"
            elif now.descriptors != self.usual.descriptors:
                kind = "descriptor"
            elif now.caught != self.usual.caught:
                kind = "handler"
            raise Failure(kind, str(error)) from None


def one_round(watched: Watched, row: Row, pause: float, on_slow: Callable[[str], None]) -> None:
    """`on_slow(what)` is called, from another thread, while something takes longer than SLOW_S. Raises Failure, NoSafeMoment."""
    begun = time.monotonic()
    observer = Accusations()
    with _noticed("coming", on_slow):
        host = Host.attach(watched.program.pid, Options(dump_on_bad_free=False), observer)
    try:
        host.wait(pause)
        took = time.monotonic() - begun
        watched.check_progress("while tracked")
        begun = time.monotonic()
    finally:
        with _noticed("leaving", on_slow):
            host.close()
    row.longest_s = max(row.longest_s, took, time.monotonic() - begun)
    watched.check_progress("afterwards")
    if observer.stayed:
        Host.attach(watched.program.pid).close()
        watched.check_progress("after the next one")
        raise AtRest
    if observer.said:
        raise Failure("accused", "; ".join(observer.said))
    watched.check_traces()


@contextlib.contextmanager
def _noticed(what: str, on_slow: Callable[[str], None]) -> Iterator[None]:
    timer = threading.Timer(SLOW_S, on_slow, (what,))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def one_kill(watched: Watched, row: Row, runner: Runner) -> None:
    """A host of its own is killed while it comes or goes. Raises Failure, NoSafeMoment."""
    script = runner.folder / "come_and_go.py"
    script.write_text(COME_AND_GO)
    host = runner.python(script, watched.program.pid)
    host.wait_for("^begins$")
    time.sleep(random.uniform(0, KILL_WITHIN_S))
    begun = time.monotonic()
    host.send_signal(signal.SIGKILL)
    host.wait()
    watched.check_progress("after the kill", GATED_S)
    row.longest_s = max(row.longest_s, time.monotonic() - begun)
    begun = time.monotonic()
    while foreign_mappings(watched.program.pid):
        if time.monotonic() - begun > AGENT_GONE_S:
            if any("rtetrack-session" in line for line in foreign_mappings(watched.program.pid)):
                raise Failure("stays", "; ".join(foreign_mappings(watched.program.pid)))
            row.counts["at rest"] += 1
            break
        time.sleep(0.05)
    watched.check_progress("after the agent has gone")
    Host.attach(watched.program.pid).close()
    watched.check_progress("after the next one")


def children(pid: int) -> list[int]:
    """Of a process, by all of its threads."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


def keep_evidence(folder: Path, pid: int, why: str) -> None:
    """What can be seen of the process and of its children from outside."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "why").write_text(why)
    if not os.path.isdir(f"/proc/{pid}/task") or not list(Path(f"/proc/{pid}/task").iterdir()):
        return
    for each in [pid, *children(pid)]:
        for name in ("maps", "status", "stat"):
            with open(folder / f"{each}-{name}", "w") as file, contextlib.suppress(*_GONE):
                file.write(Path(f"/proc/{each}/{name}").read_text())
        threads = []
        with contextlib.suppress(*_GONE):
            for task in sorted(Path(f"/proc/{each}/task").iterdir()):
                words = [(task / name).read_text().strip() for name in ("comm", "wchan", "syscall")]
                threads.append(f"{task.name} {' | '.join(words)}\n")
        (folder / f"{each}-threads").write_text("".join(threads))
        command = ["gdb", "-p", str(each), "-batch", "-ex", "thread apply all bt 30"]
        with open(folder / f"{each}-gdb", "wb") as output, contextlib.suppress(*_GONE):
            subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=GDB_S, stdin=subprocess.DEVNULL)


class Rounds:
    """All rounds of one run, and the table of what came of them."""

    def __init__(self, evidence: Path, pause: float, *, kills: bool) -> None:
        self._kills = kills
        self.rows: dict[str, Row] = {name: Row() for name in EVERY_LOAD}
        self._evidence = evidence
        self._pause = pause
        self._failures = 0
        self._slow = 0

    def turn(self, name: str, count: int, deadline: float) -> None:
        """Up to `count` rounds with one load."""
        row, left = self.rows[name], count
        while left > 0 and time.monotonic() < deadline:
            with tempfile.TemporaryDirectory() as folder:
                runner = Runner(Path(folder), ROOT / "build" / "programs")
                try:
                    left -= self._with_one_program(runner, name, row, left, deadline)
                finally:
                    runner.close()

    def _with_one_program(self, runner: Runner, name: str, row: Row, count: int, deadline: float) -> int:
        watched, done = None, 0
        try:
            watched = Watched(runner, EVERY_LOAD[name])
            while done < count and time.monotonic() < deadline:
                done += 1
                row.rounds += 1
                try:
                    if self._kills:
                        one_kill(watched, row, runner)
                    else:
                        one_round(watched, row, self._pause, self._slow_noter(row, name, watched.program.pid))
                except NoSafeMoment as error:
                    row.counts["refused"] += 1
                    row.reasons[str(error)] += 1
                    watched.check_progress("after a refusal")
                    watched.check_traces()
        except NoSafeMoment as error:  # the very first
            row.rounds += 1
            row.counts["refused"] += 1
            row.reasons[str(error)] += 1
            return 1
        except AtRest:
            row.counts["at rest"] += 1
        except Failure as failure:
            self._note(row, name, failure.kind, str(failure), runner)
        except (RtetrackError, OSError, AssertionError):
            self._note(row, name, "error", traceback.format_exc(), runner)
        return max(done, 1)

    def _slow_noter(self, row: Row, name: str, pid: int) -> Callable[[str], None]:
        """Keeps evidence of what takes long; no failure."""

        def note(what: str) -> None:
            row.counts["slow"] += 1
            self._slow += 1
            frames = "".join("".join(traceback.format_stack(frame)) + "\n" for frame in sys._current_frames().values())
            keep_evidence(self._evidence / f"slow-{self._slow:03}-{what}-{name.replace(' ', '-')}", pid, frames)

        return note

    def _note(self, row: Row, name: str, kind: str, text: str, runner: Runner) -> None:
        self._failures += 1
        row.counts[kind] += 1
        folder = self._evidence / f"{self._failures:03}-{kind}-{name.replace(' ', '-')}"
        print(f"{time.strftime('%H:%M:%S')} {name}: {text[:1500]}\n    evidence: {folder}", flush=True)
        programs = [process for process in runner._processes if not isinstance(process, Tracked)]
        keep_evidence(folder, programs[0].pid, text)
        for core in Path.cwd().glob("core*"):
            shutil.move(core, folder / core.name)

    def table(self) -> str:
        """A line a load."""
        head = (
            f"{'load':24} {'rounds':>6} "
            + " ".join(f"{kind:>7.7}" for kind in (*KINDS, "at rest", "slow", "refused"))
            + " longest"
        )
        lines = [head]
        total = Row()
        for name, row in self.rows.items():
            if row.rounds:
                lines.append(_line(name, row))
            total.rounds += row.rounds
            total.counts += row.counts
            total.longest_s = max(total.longest_s, row.longest_s)
        lines.append(_line("all", total))
        for name, row in self.rows.items():
            lines += [f"refused, {name}: {count} x {reason}" for reason, count in row.reasons.items()]
        return "\n".join(lines)

    @property
    def failed(self) -> bool:
        """Whether anything but a refusal came."""
        return self._failures > 0


def _line(name: str, row: Row) -> str:
    counts = " ".join(f"{row.counts[kind] or '.':>7}" for kind in (*KINDS, "at rest", "slow", "refused"))
    return f"{name:24} {row.rounds:6} {counts} {row.longest_s:5.1f} s"


@click.command()
@click.option("--rounds", type=int, default=0, help="In all; 0: as many as fit into --seconds.")
@click.option("--seconds", type=float, default=3600.0, help="At the most.")
@click.option("--turn", type=int, default=5, help="Rounds with one program.")
@click.option("--pause", type=float, default=0.05, help="Seconds between coming and leaving.")
@click.option("--load", "loads", multiple=True, type=click.Choice([*EVERY_LOAD]), help="Only these.")
@click.option("--kills", is_flag=True, help="The host is killed in each round.")
@click.option("--standstill", "measure", is_flag=True, help="Measures the forwarding program instead; --rounds 100.")
@click.option("--evidence", type=click.Path(path_type=Path), default=Path("build/rounds"), show_default=True)
def main(
    rounds: int,
    seconds: float,
    turn: int,
    pause: float,
    loads: tuple[str, ...],
    kills: bool,
    measure: bool,
    evidence: Path,
) -> None:
    """Attaches to restless programs and leaves them, and says what they noticed of it."""
    if measure:
        with tempfile.TemporaryDirectory() as folder:
            runner = Runner(Path(folder), ROOT / "build" / "programs")
            try:
                print(standstill.measure(runner, rounds or 100, seconds / 2), flush=True)
                print(standstill.measure_testpmd(runner, rounds or 100, seconds / 2))
            finally:
                runner.close()
        return
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    evidence = evidence.resolve() / time.strftime("%H%M%S")
    evidence.mkdir(parents=True)
    os.chdir(evidence)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    work = Rounds(evidence, pause, kills=kills)
    deadline = time.monotonic() + seconds
    try:
        for name in itertools.cycle(loads or EVERY_LOAD):
            done, before = sum(row.rounds for row in work.rows.values()), work.rows[name].rounds
            if time.monotonic() >= deadline or (rounds and done >= rounds):
                break
            work.turn(name, min(turn, rounds - done) if rounds else turn, deadline)
            print(f"{time.strftime('%H:%M:%S')} {name}: {done + work.rows[name].rounds - before} rounds", flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        print(work.table(), flush=True)
    sys.exit(1 if work.failed else 0)


if __name__ == "__main__":
    main()
