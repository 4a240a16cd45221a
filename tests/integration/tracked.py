"""Runs programs and the rtetrack-frida command as a user would: as processes, with their streams and exit status."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from frida_rtetrack import Observer
from frida_rtetrack.reports.dump import DumpRow, read_dump
from frida_rtetrack.tracking.badfree import BadFreeReport

PATIENCE = 60.0
"""Seconds after which a process or a line is given up; far more than a busy machine needs."""

MARKER = "RTETRACK_TEST"
"""An environment variable by which a test's processes, however they came to be, are found at its end."""


P = TypeVar("P", bound="Process")


class Process:
    """A process whose output is collected while it runs."""

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: dict[str, str] | None = None,
        cwd: os.PathLike[str] | None = None,
        stdin: int = subprocess.PIPE,
    ) -> None:
        self.argv = [os.fspath(word) for word in argv]
        self.started = time.monotonic()
        self._popen = subprocess.Popen(
            self.argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=cwd
        )
        self.pid = self._popen.pid
        self._changed = threading.Condition()
        self._texts = {"stdout": "", "stderr": ""}
        self._readers = [
            threading.Thread(target=self._read, args=(name, getattr(self._popen, name)), daemon=True)
            for name in self._texts
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, pipe: Any) -> None:
        while data := os.read(pipe.fileno(), 65536):
            with self._changed:
                self._texts[name] += data.decode(errors="surrogateescape")
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def stdout(self) -> str:
        """What it wrote to standard output so far."""
        return self._texts["stdout"]

    @property
    def stderr(self) -> str:
        """What it wrote to standard error so far."""
        return self._texts["stderr"]

    def wait_for(self, pattern: str, stream: str = "stdout", *, seconds: float = PATIENCE) -> re.Match[str]:
        """Waits until `pattern` is in the output."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while (found := re.search(pattern, self._texts[stream], re.MULTILINE)) is None:
                left = deadline - time.monotonic()
                ended = not any(reader.is_alive() for reader in self._readers)
                assert left > 0 and not ended, f"{pattern!r} not in {stream}:\n{self.stdout}\n----\n{self.stderr}"
                self._changed.wait(min(left, 0.5))
        return found

    def ask(self, line: str, pattern: str) -> re.Match[str]:
        """Writes `line` to its input and waits for an answer that was not there before."""
        before = len(re.findall(pattern, self.stdout, re.MULTILINE))
        self.tell(line)
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while len(found := list(re.finditer(pattern, self.stdout, re.MULTILINE))) <= before:
                assert time.monotonic() < deadline and self.alive, (
                    f"no answer to {line!r}:\n{self.stdout}\n{self.stderr}"
                )
                self._changed.wait(0.5)
        return found[-1]

    def tell(self, line: str) -> None:
        """Writes `line` to its input."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(line.encode() + b"\n")
        self._popen.stdin.flush()

    def close_input(self) -> None:
        """Ends its input."""
        with contextlib.suppress(BrokenPipeError):
            if self._popen.stdin is not None:
                self._popen.stdin.close()

    def kill(self) -> None:
        """Kills it if it is still there."""
        self._popen.kill()

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._popen.poll() is None

    def finish(self, *, seconds: float = PATIENCE) -> int:
        """Ends its input and waits for its end. The exit status, negative for a signal."""
        self.close_input()
        return self.wait(seconds=seconds)

    def wait(self, *, seconds: float = PATIENCE) -> int:
        """Waits for its end. The exit status, negative for a signal."""
        try:
            status = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.argv} does not end:\n{self.stdout}\n----\n{self.stderr}") from None
        for reader in self._readers:
            reader.join(5)
        return status


class Tracked(Process):
    """The rtetrack-frida command at work on a program, with its summary and dump in files of its own."""

    def __init__(
        self,
        command: str,
        words: Sequence[Any],
        options: Sequence[Any],
        folder: Path,
        prefix: Sequence[str] = (),
        **more: Any,
    ) -> None:
        self.summary_path = folder / f"summary-{time.monotonic_ns()}.json"
        self.dump_path = folder / "dump.csv"
        self._words = [str(word) for word in words]
        given = [str(option) for option in options]
        if "--summary" not in given:
            given += ["--summary", str(self.summary_path)]
        if "--dump-file" not in given and "RTE_MALLOC_TRACK_DUMP_FILE" not in (more.get("env") or {}):
            given += ["--dump-file", str(self.dump_path)]
        super().__init__([*prefix, sys.executable, "-m", "frida_rtetrack", command, *given, *map(str, words)], **more)

    @property
    def summary(self) -> dict[str, Any]:
        """The summary that it wrote."""
        assert self.summary_path.exists(), f"no summary was written:\n{self.stdout}\n----\n{self.stderr}"
        return dict(json.loads(self.summary_path.read_text()))

    @property
    def dump(self) -> list[DumpRow]:
        """The dump that it wrote last."""
        assert self.dump_path.exists(), f"no dump was written:\n{self.stdout}\n----\n{self.stderr}"
        return read_dump(self.dump_path)

    @property
    def target(self) -> int:
        """The pid of the program that was spawned: the descendant with its arguments."""
        wanted = "\0".join(self._words) + "\0"
        waiting = [self.pid]
        while waiting:
            pid = waiting.pop()
            with contextlib.suppress(OSError):
                if pid != self.pid and Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace") == wanted:
                    return pid
                for task in os.listdir(f"/proc/{pid}/task"):
                    waiting += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        raise AssertionError(f"{wanted!r} does not run:\n{self.stderr}")


class Runner:
    """Starts processes for one test, and leaves none behind."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self.programs = programs
        self._marker = f"{os.getpid()}-{time.monotonic_ns()}"
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith("RTE_MALLOC_TRACK")
        } | {MARKER: self._marker, "HOME": str(folder)}
        self.prefix: tuple[str, ...] = ()
        """What every process is started by."""
        self._processes: list[Process] = []

    def program(self, name: str) -> str:
        """The path of a test program; other names are left as they are."""
        path = self.programs / name
        return str(path) if path.exists() else name

    def start(self, name: str, *arguments: Any, **more: Any) -> Process:
        """Starts a program untracked."""
        return self._keep(
            Process([*self.prefix, self.program(name), *map(str, arguments)], **self._with_environment(more))
        )

    def spawn(self, name: str, *arguments: Any, options: Sequence[Any] = (), **more: Any) -> Tracked:
        """Starts `rtetrack-frida spawn OPTIONS PROGRAM ARGUMENTS`."""
        words = [self.program(name), *arguments]
        return self._keep(Tracked("spawn", words, options, self.folder, self.prefix, **self._with_environment(more)))

    def run(self, name: str, *arguments: Any, options: Sequence[Any] = (), **more: Any) -> Tracked:
        """Like spawn; waits for the end, with nothing to read for the program."""
        tracked = self.spawn(name, *arguments, options=options, **more)
        tracked.finish()
        return tracked

    def attach(self, target: Any, *, options: Sequence[Any] = (), wait: bool = True, **more: Any) -> Tracked:
        """Starts `rtetrack-frida attach`; with `wait`, waits until the program is hooked."""
        tracked = self._keep(
            Tracked("attach", [target], options, self.folder, self.prefix, **self._with_environment(more))
        )
        if wait:
            tracked.wait_for("tracking .* functions", "stderr")
            eventually(lambda: handles_signal(tracked.pid, signal.SIGTERM))
        return tracked

    def report(self, *words: Any) -> Process:
        """Starts a command of rtetrack-frida that reads a recording."""
        return self._keep(
            Process([sys.executable, "-m", "frida_rtetrack", *map(str, words)], **self._with_environment({}))
        )

    def python(self, script: Path, *arguments: Any) -> Process:
        """Runs a Python script that uses frida_rtetrack."""
        return self._keep(Process([sys.executable, script, *map(str, arguments)], **self._with_environment({})))

    def start_ready(self, name: str, *arguments: Any, **more: Any) -> Process:
        """Starts a program untracked and waits until it says that it is ready."""
        process = self.start(name, *arguments, **more)
        process.wait_for("^ready$")
        return process

    def start_load(self, threads: int, *, depth: int = 8, seconds: float = 100) -> Load:
        """Starts the load program untracked and waits until it is at work."""
        path = self.folder / f"load-{time.monotonic_ns()}.txt"
        process = self.start("load", threads, depth, seconds, path)
        load = Load(process, path, threads)
        eventually(lambda: len(load.pairs()) >= 3)
        return load

    def _with_environment(self, more: dict[str, Any]) -> dict[str, Any]:
        return more | {"env": self.environment | (more.pop("env", None) or {})}

    def _keep(self, process: P) -> P:
        self._processes.append(process)
        return process

    def close(self) -> None:
        """Kills whatever is left of this test's processes."""
        for pid in self.marked():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.kill()  # one whose main thread has ended does not show its environment
            process.close_input()
            with contextlib.suppress(AssertionError):
                process.wait(seconds=10)

    def marked(self) -> Iterator[int]:
        """The pids of this test's processes, however they came to be."""
        needle = f"{MARKER}={self._marker}".encode()
        for entry in os.listdir("/proc"):
            if not entry.isdecimal() or int(entry) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if needle in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    yield int(entry)


class Load:
    """tests/programs/load.c at work."""

    def __init__(self, process: Process, path: Path, threads: int) -> None:
        self.process = process
        self.threads = threads
        self.pid = process.pid
        self._path = path

    def pairs(self) -> list[int]:
        """Pairs of malloc and free in each 100 ms so far."""
        if not self._path.exists():
            return []
        return [int(line) for line in self._path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def bare_rate(self, runner: Runner) -> float:
        """The rate of an untracked load like this one, now, on this machine; this one is stopped meanwhile."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            other = runner.start_load(self.threads)
            rate = other.rate()
            other.stop()
            return rate
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def rate(self, count: int = 5, *, skip: int = 1) -> float:
        """Pairs in 100 ms: the median of the next `count`, `skip` of them left out before."""
        before = len(self.pairs())
        eventually(lambda: len(self.pairs()) >= before + skip + count)
        return float(sorted(self.pairs()[before + skip : before + skip + count])[count // 2])

    def stop(self) -> int:
        """Ends it; the number of pairs that it made in all."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.finish() == 0, self.process.stderr
        return int(self.process.wait_for(r"^total (\d+)$")[1])


class Accusations(Observer):
    """Collects the bad frees and problems that the host tells of."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.stayed: list[str] = []
        """That Frida's agent stays, which is no accusation: on a machine that is overloaded it happens (docs/frida-notes.md)."""

    def bad_free(self, report: BadFreeReport) -> None:
        self.said.append(f"{report.kind} {report.address:#x}: {report.detail}")

    def problem(self, text: str) -> None:
        (self.stayed if text.startswith("Frida's agent stays") else self.said).append(text)


def eventually(condition: Callable[[], Any], *, seconds: float = PATIENCE) -> None:
    """Waits until `condition` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def handles_signal(pid: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^SigCgt:\s+([0-9a-f]+)$", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def foreign_mappings(pid: int) -> list[str]:
    """The lines of /proc/PID/maps that Frida or rtetrack-frida left."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return [line for line in maps.splitlines() if re.search(r"frida|rtetrack-session|memfd:.*(agent|JIT)", line)]


def threads(pid: int) -> list[str]:
    """The names of a process's threads."""
    return sorted(Path(task, "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir())


def functions(backtrace: list[dict[str, Any]]) -> list[str | None]:
    """The function names of a summary's backtrace, innermost first."""
    return [frame["function"] for frame in backtrace]


def assert_untouched(pid: int) -> None:
    """The process is as it was before anybody attached."""
    eventually(lambda: not foreign_mappings(pid), seconds=3)
    assert not [name for name in threads(pid) if re.search("gum|frida|gmain|gdbus", name)]


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"^State:\s+[RSDt]", status, re.MULTILINE), f"the program is gone:\n{status}"
    found = re.search(
        r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE
    )  # each thread that comes may reserve 64 MiB for malloc
    assert found is not None
    return int(found[1])
