"""The prompt, typed at on a real terminal."""

from __future__ import annotations

import contextlib
import fcntl
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from tracked import Process, Runner, eventually, foreign_mappings

from frida_rtetrack.reports.dump import read_dump

PROMPT = "rtetrack>"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]|\r")


class Terminal:
    """rtetrack-frida on a terminal of its own."""

    def __init__(self, runner: Runner, words: list[str]) -> None:
        environment: Any = runner.environment | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "frida_rtetrack", *words],
            env=environment,
            encoding="utf-8",
            timeout=30,
            dimensions=(40, 200),
        )
        self.child.delaybeforesend = None
        self.raw, self.seen = "", 0

    def read_on(self, pattern: str | None) -> None:
        """Reads until `pattern` (None: the end of the terminal) has come up since the last one."""
        deadline = time.monotonic() + 30
        while pattern is None or not re.search(pattern, self.text[self.seen :], re.MULTILINE):
            assert time.monotonic() < deadline, f"{pattern!r} does not come up:\n{self.text}"
            try:
                self.raw += self.child.read_nonblocking(65536, timeout=0.2)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                assert pattern is None, f"{pattern!r} did not come up:\n{self.text}"
                return

    @property
    def text(self) -> str:
        """All that was ever written to the terminal, without escape sequences."""
        return ESCAPES.sub("", self.raw)

    def expect(self, pattern: str) -> str:
        """Waits for `pattern`; what came before it since the last one, and it."""
        self.read_on(pattern)
        found = re.search(pattern, self.text[self.seen :], re.MULTILINE)
        assert found is not None
        answer = self.text[self.seen : self.seen + found.end()]
        self.seen += found.end()
        return answer

    def command(self, line: str, pattern: str) -> str:
        """Types a command and waits for its answer."""
        self.child.send(line + "\r")
        return self.expect(pattern)

    def status(self) -> int:
        """Waits for the end; the exit status, 128 + N for signal N."""
        self.read_on(None)
        self.rest = self.text[self.seen :]
        self.child.close()
        return 128 + self.child.signalstatus if self.child.exitstatus is None else self.child.exitstatus


@pytest.fixture
def spawned(runner: Runner, tmp_path: Path) -> Iterator[Terminal]:
    """The waiter program spawned at the prompt, and ready."""
    terminal = Terminal(
        runner,
        [
            "spawn",
            "--dump-file",
            str(tmp_path / "dump.csv"),
            "--summary",
            str(tmp_path / "s.json"),
            runner.program("waiter"),
        ],
    )
    terminal.expect("ready$")
    terminal.expect(PROMPT)
    yield terminal
    terminal.child.close(force=True)


@contextlib.contextmanager
def attached(runner: Runner, program: Process, *options: str) -> Iterator[Terminal]:
    terminal = Terminal(runner, ["attach", "--dump-file", str(runner.folder / "dump.csv"), *options, str(program.pid)])
    terminal.expect("tracking .* functions")
    terminal.expect(PROMPT)
    yield terminal
    terminal.child.close(force=True)


def test_stats(spawned: Terminal) -> None:
    answer = spawned.command("stats", "by socket")
    for word in (
        "live",
        "peak",
        "allocations",
        "frees",
        "bad frees",
        "events lost",
        "by type",
        "rte_service_core_states",
        "kept",
    ):
        assert word in answer


def test_dump_writes_the_file_that_is_named(spawned: Terminal, tmp_path: Path) -> None:
    assert "3 live allocations written to" in spawned.command(
        f"dump {tmp_path / 'named.csv'}", "named.csv\r?\n.*written to .*\n|written to .*\n"
    )
    assert [row.type for row in read_dump(tmp_path / "named.csv") if row.size == 4242] == ["kept"]
    spawned.command("dump", "written to")
    eventually(lambda: (tmp_path / "dump.csv").exists(), seconds=5)


def test_dump_that_cannot_be_written_is_told(spawned: Terminal) -> None:
    assert "/missing/dump" in spawned.command("dump /missing/dump", "No such file")


def test_top(spawned: Terminal) -> None:
    answer = spawned.command("top 3 blocks", "wait_inner")
    assert "keep" in answer
    spawned.command("top 1 oldest", "in 1 block")
    assert "top takes" in spawned.command("top many", "top takes")


def test_show_a_live_a_freed_an_inner_and_an_unknown_address(spawned: Terminal, tmp_path: Path) -> None:
    spawned.command(f"dump {tmp_path / 'd'}", "written to")
    (kept,) = [row.address for row in read_dump(tmp_path / "d") if row.type == "kept"]
    assert "is a live block" in spawned.command(f"show {kept:#x}", "wait_inner")
    assert "10 bytes inside" in spawned.command(f"show {kept + 10:#x}", "wait_inner")
    assert "Nothing is known" in spawned.command("show 0x10", "Nothing is known of 0x10")
    assert "no address" in spawned.command("show frog", "no address")
    title = spawned.command("send bad", r"Duplicate free of address: 0x[0-9a-f]+")
    freed = title[title.rindex("0x") :]
    assert "was freed" in spawned.command(f"show {freed}", "was freed")


def test_bad_frees_and_the_programs_output_appear_above_the_prompt(spawned: Terminal) -> None:
    assert "No bad frees" in spawned.command("bad", "No bad frees")
    spawned.command("send say something", "said something")
    spawned.child.send("send ba")  # half a line is being typed; it must survive what is printed above it
    spawned.expect("send ba")
    spawned.child.send("d\r")
    spawned.expect("Duplicate free of address")
    spawned.expect(PROMPT)
    answer = spawned.command("bad 1", "of type freed twice")
    assert "free_twice" in answer


def test_a_line_that_the_program_has_not_finished_stays_above_the_prompt(spawned: Terminal) -> None:
    spawned.command("send ask what?", r"^what\?\nrtetrack>")
    spawned.child.send("send s")  # what is typed is read on a line of its own
    spawned.expect("send s")
    spawned.child.send("ay so\r")
    spawned.expect(r"what\?say so\n")  # as the program's terminal has it: its own echo
    spawned.expect("said so")
    spawned.expect(PROMPT)


def test_send_types_what_is_typed_quotes_and_all(spawned: Terminal) -> None:
    for words in ('"a b"', "it's  \"half", "\\x; $y | z"):
        spawned.command(f"send say {words}", "said " + re.escape(words))
        spawned.expect(PROMPT)


def test_send_types_keys(spawned: Terminal) -> None:
    spawned.command("send ^^say ^C", r"\^\^say \^C")  # a word among others is a word
    spawned.child.send("send ^D\r")
    assert spawned.status() == 0


def test_send_ctrl_c_reaches_the_program_as_from_its_terminal(runner: Runner) -> None:
    terminal = Terminal(runner, ["spawn", runner.program("waiter"), "sigint"])
    terminal.expect("ready$")
    terminal.expect(PROMPT)
    terminal.child.send("send ^C\r")
    assert terminal.status() == 5


def test_the_programs_terminal_has_the_size_of_ours_also_when_that_changes(spawned: Terminal, runner: Runner) -> None:
    def size() -> tuple[int, int]:
        with open(f"/proc/{pid}/fd/0", "rb", buffering=0) as stream:
            rows, columns = struct.unpack("HHHH", fcntl.ioctl(stream, termios.TIOCGWINSZ, bytes(8)))[:2]
            return int(rows), int(columns)

    (pid,) = (pid for pid in runner.marked() if Path(f"/proc/{pid}/comm").read_text() == "waiter\n")
    assert size() == (40, 200)
    spawned.child.send("sta")
    spawned.child.setwinsize(24, 71)
    eventually(lambda: size() == (24, 71), seconds=5)
    spawned.command("ts", "by socket")


def test_pause_and_resume(spawned: Terminal) -> None:
    spawned.command("pause", "Paused")
    spawned.command("send leak 1001", "leaked 0x")
    spawned.command("resume", "Recording")
    spawned.command("send leak 1002", "leaked 0x")
    assert re.search(r"^allocations +4 ", spawned.command("stats", "^frees"), re.MULTILINE)


def test_unknown_and_damaged_commands_are_told(spawned: Terminal) -> None:
    spawned.command("frobnicate", "no command frobnicate")
    spawned.command('dump "half', "quotes")
    spawned.command("", PROMPT)


def test_help_lists_every_command(spawned: Terminal) -> None:
    answer = spawned.command("help", "Ctrl-D")
    for command in ("dump", "stats", "top", "show", "bad", "pause", "resume", "detach", "kill", "quit", "help"):
        assert re.search(rf"(?:^|>) +{command}\b", answer, re.MULTILINE), command


def test_tab_completes_a_command(spawned: Terminal) -> None:
    spawned.child.send("sta\t")
    spawned.expect("stats")
    spawned.child.send("\r")
    spawned.expect("events lost")


def test_quit_ends_a_spawned_program(spawned: Terminal) -> None:
    spawned.child.send("quit\r")
    assert spawned.status() == 128 + 15
    assert "still live" in spawned.rest


def test_ctrl_d_is_quit(spawned: Terminal) -> None:
    spawned.child.sendcontrol("d")
    assert spawned.status() == 128 + 15


def test_kill(spawned: Terminal) -> None:
    spawned.child.send("kill\r")
    assert spawned.status() == 128 + 9


def test_a_verify_that_was_typed_is_not_repeated_at_the_end_as_if_it_were_of_the_end(spawned: Terminal) -> None:
    spawned.command("verify", "are the same")
    spawned.expect(PROMPT)
    spawned.child.send("kill\r")
    assert spawned.status() == 128 + 9
    assert "still live" in spawned.rest
    assert "are the same" not in spawned.rest


def test_ctrl_c_reaches_the_spawned_program(spawned: Terminal) -> None:
    spawned.child.sendcontrol("c")
    assert spawned.status() == 128 + 2


def test_a_second_ctrl_c_kills_it(runner: Runner) -> None:
    terminal = Terminal(runner, ["spawn", runner.program("waiter"), "ignore-sigint"])
    terminal.expect("ready$")
    terminal.expect(PROMPT)
    terminal.child.sendcontrol("c")
    terminal.expect("interrupted")
    terminal.child.sendcontrol("c")
    assert terminal.status() == 128 + 9


def test_the_programs_end_ends_the_prompt(runner: Runner) -> None:
    terminal = Terminal(runner, ["spawn", "--no-dump-on-bad-free", runner.program("demo")])
    assert terminal.status() == 0
    assert "demo: done" in terminal.rest
    assert "2 bad frees" in terminal.rest


def test_a_spawned_program_sees_a_terminal(runner: Runner) -> None:
    terminal = Terminal(runner, ["spawn", runner.program("echo")])
    terminal.expect("terminal 1")
    terminal.child.sendcontrol("c")
    terminal.status()


def test_detach_lets_a_spawned_program_run_on(runner: Runner) -> None:
    path = runner.folder / "load.txt"
    terminal = Terminal(runner, ["spawn", runner.program("load"), "1", "8", "100", str(path)])
    eventually(lambda: path.exists() and path.read_text().count("\n") > 1)
    pid = int(subprocess.run(["pgrep", "-f", str(path)], capture_output=True, text=True).stdout.split()[-1])
    terminal.command("detach", "Detached")
    eventually(lambda: not foreign_mappings(pid), seconds=5)
    written = path.read_text().count("\n")
    eventually(lambda: path.read_text().count("\n") > written + 3)
    terminal.child.sendcontrol("c")
    assert terminal.status() == 128 + 2


@pytest.mark.parametrize("key", ["quit\r", "\x04", "\x03", "detach\r"], ids=["quit", "Ctrl-D", "Ctrl-C", "detach"])
def test_leaving_an_attached_program_lets_it_run_on(runner: Runner, key: str) -> None:
    program = runner.start_ready("waiter")
    with attached(runner, program) as terminal:
        program.ask("leak 5555", "^leaked")
        terminal.command("top", "5,555 bytes|5.4 KiB")
        terminal.expect(PROMPT)
        terminal.child.send(key)
        assert terminal.status() == 0
    assert not foreign_mappings(program.pid)
    assert program.ask("say on", "^said on$")
    assert program.finish() == 0


def test_an_attached_programs_end_ends_the_prompt(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    with attached(runner, program) as terminal:
        assert program.finish() == 0
        assert terminal.status() == 0


def test_duration_ends_the_prompt(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    with attached(runner, program, "--duration", "1") as terminal:
        assert terminal.status() == 0
    assert program.alive


def test_no_repl_gives_no_prompt_on_a_terminal(runner: Runner) -> None:
    terminal = Terminal(runner, ["spawn", "--no-repl", runner.program("demo")])
    assert terminal.status() == 0
    assert PROMPT not in terminal.rest
