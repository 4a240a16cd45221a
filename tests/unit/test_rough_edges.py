"""What a program or a user may write that must not command the terminal, or end the session."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from frida_rtetrack.commands.prompt import Prompt
from frida_rtetrack.errors import BadUsage, NoSuchProcess, NoSuchProgram, NotLive, RtetrackError
from frida_rtetrack.host import Host
from frida_rtetrack.options import Options
from frida_rtetrack.reporters import outfile
from frida_rtetrack.reporters.console import ConsoleReporter
from frida_rtetrack.symbols.visible import visible
from frida_rtetrack.target import process


def test_what_commands_a_terminal_is_shown_and_the_rest_is_left_as_it_is() -> None:
    assert visible("a\x1b[2J\x07\r\n\x9b\x7f\u202e\u2066z") == r"a\x1b[2J\x07\x0d\x0a\x9b\x7f\u202e\u2066z"
    assert visible("Gr\u00f6\u00dfe \u4e2d\u6587 <x>") == "Gr\u00f6\u00dfe \u4e2d\u6587 <x>"


def test_the_console_says_nothing_that_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleReporter().problem("\x1b]0;owned\x07")
    assert capsys.readouterr().err == "rtetrack-frida: \\x1b]0;owned\\x07\n"


_SPEAKS = """
import sys
import termios
from frida_rtetrack.reporters import streams
from frida_rtetrack.reporters.console import ConsoleReporter
streams.open_closed_streams()
file = open(sys.argv[1], "w")
assert file.fileno() > 2
for _ in range(3):
    ConsoleReporter().problem("something")
    ConsoleReporter().output(b"of the program")
file.write("the summary")
file.close()
sys.exit(7)
"""


@pytest.mark.parametrize("how", ["", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full >/dev/full", "reader gone"])
def test_whoever_reads_or_does_not_the_run_goes_on_and_its_status_stays(tmp_path: Path, how: str) -> None:
    summary, reader = tmp_path / "summary", subprocess.Popen(["true"], stdin=subprocess.PIPE)
    assert reader.stdin is not None
    reader.wait()
    gone = how == "reader gone"
    ran = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {"" if gone else how}', "sh", sys.executable, "-c", _SPEAKS, str(summary)],
        stdout=reader.stdin if gone else subprocess.PIPE,
        stderr=reader.stdin if gone else subprocess.PIPE,
        check=False,
    )
    reader.stdin.close()
    assert ran.returncode == 7, ran.stderr
    assert summary.read_text() == "the summary"
    assert b"Traceback" not in (ran.stderr or b"")
    if not how:
        assert ran.stderr == b"rtetrack-frida: something\n" * 3


def test_what_makes_no_sense_is_bad_usage() -> None:
    host = Host(Options())
    for ask in (
        lambda: host.find(-1),
        lambda: host.find(1 << 64),
        lambda: host.top(-1),
        lambda: host.top(3, "names"),
        lambda: Host.spawn([]),
        lambda: Host.spawn(cast(Any, ["/bin/true", 3])),
        lambda: Host.spawn("/bin/true"),
        lambda: Host.attach(os.getpid()),
        lambda: Host(Options(max_frames=-3)),
        lambda: Host(Options(engine="steam")),
        lambda: Host(Options(buffer_mib=0)),
        lambda: Host(Options(max_frames=cast(Any, "64"))),
        lambda: Host(Options(symbols=cast(Any, "rte_free=app+0x1"))),
        lambda: Host(Options(symbols=(cast(Any, 1),))),
        lambda: Host(Options(library=cast(Any, 3))),
        lambda: Host(Options(hook_ways=("fast",))),
        lambda: host.find(cast(Any, "0x10")),
        lambda: host.refs(-1),
        lambda: host.top(cast(Any, "a")),
        lambda: Host.attach(cast(Any, 1.5)),
        lambda: Host.attach([]),
        lambda: Host.spawn(["/bin/true"], terminal=999),
    ):
        with pytest.raises(BadUsage):
            ask()


_NO_NUMBERS = ("x", None, [], b"1", float("nan"), True, 10**400)
_NO_PATHS = (3.5, [], "a\0b", object())
_NO_PROCESSES = (1.5, True, None, [], [1.5], b"12", {}, [None], "9" * 5000, "a\0b", -1)
_WRONG: dict[str, tuple[Callable[[Host, Any], object], tuple[Any, ...]]] = {
    "spawn": (lambda host, it: Host.spawn(it), ("", "true", b"true", None, 3, [3], [], [""], ["a\0b"], {}, [b"true"])),
    "spawn, options": (lambda host, it: Host.spawn(["true"], it), (3, "x", {"engine": "native"})),
    "spawn, observer": (lambda host, it: Host.spawn(["true"], None, it), (3, "x", print)),
    "spawn, terminal": (lambda host, it: Host.spawn(["true"], terminal=it), (999, -1, "x", 1.5)),
    "spawn, also_attach": (lambda host, it: Host.spawn(["true"], also_attach=it), (3, "12", None, b"1", [1.5], [None])),
    "attach": (lambda host, it: Host.attach(it), _NO_PROCESSES),
    "attach, options": (lambda host, it: Host.attach(1, it), (3, "x")),
    "join": (lambda host, it: host.join(it), (*_NO_PROCESSES, [1, 2])),
    "wait": (lambda host, it: host.wait(it), [it for it in _NO_NUMBERS if it is not None]),
    "end": (lambda host, it: host.end(it), _NO_NUMBERS),
    "sync": (lambda host, it: host.sync(it), _NO_NUMBERS),
    "send_signal": (lambda host, it: host.send_signal(it), (*_NO_NUMBERS, 0, -9, 65, 1.5)),
    "record": (lambda host, it: host.record(it), (*_NO_PATHS, None)),
    "dump": (lambda host, it: host.dump(it), _NO_PATHS),
    "dump_soon": (lambda host, it: host.dump_soon(it), (None, 3)),
    "top": (lambda host, it: host.top(it), (*_NO_NUMBERS[:-1], 0, -1, 1.5)),
    "top, by": (lambda host, it: host.top(3, it), ("names", None, 3, [])),
    "find": (lambda host, it: host.find(it), (*_NO_NUMBERS, -1, 1 << 64, 1.5)),
    "refs": (lambda host, it: host.refs(it), (*_NO_NUMBERS, -1, 1 << 64, 1.5)),
    "leak_report": (lambda host, it: host.leak_report(it), (3, "leak:main", None, ["leak:main"])),
    "dump_path": (lambda host, it: Host(Options(dump_path=it)), _NO_PATHS),
    "record, option": (lambda host, it: Host(Options(record=it)), _NO_PATHS),
    "aggregate": (lambda host, it: Host(Options(record_aggregate_seconds=it)), ("x", float("nan"), [])),
    "max size": (lambda host, it: Host(Options(record_max_bytes=it)), ("x", 1.5, [], -1)),
    "leak_check": (lambda host, it: Host(Options(leak_check=it)), ("all", 3, None, frozenset({3}))),
}
"""What there is in the Python interface to be given, and values of the wrong type, or that make no sense there."""


@pytest.mark.parametrize(
    ("call", "value"),
    [
        pytest.param(call, value, id=f"{name}-{type(value).__name__}-{number}")
        for name, (call, values) in _WRONG.items()
        for number, value in enumerate(values)
    ],
)
def test_whatever_the_interface_is_given_it_answers_with_an_error_of_ours(
    call: Callable[[Host, Any], object], value: Any
) -> None:
    with pytest.raises(RtetrackError) as raised:
        call(Host(Options()), value)
    assert not isinstance(raised.value, NotLive), "what makes no sense is told before there is anything to be asked"


def test_nothing_that_is_typed_ends_the_prompt() -> None:
    def broken() -> None:
        raise KeyError("a bug")

    host = SimpleNamespace(find=Host(Options()).find, stats=broken)
    prompt = Prompt(cast(Any, host), cast(Any, None), None, spawned=False, on_interrupt=lambda: None)
    prompt._screen = screen = io.StringIO()
    for line in ("show -5", "show 0x1ffffffffffffffffffff", "stats"):
        prompt.execute(line)
    assert screen.getvalue().splitlines() == [
        "-0x5 is no address. An address has 64 bits.",
        "0x1ffffffffffffffffffff is no address. An address has 64 bits.",
        "stats failed: KeyError('a bug'). Please report this.",
    ]


def test_words_too_many_are_refused_and_nothing_is_done() -> None:
    prompt = Prompt(cast(Any, None), cast(Any, None), None, spawned=True, on_interrupt=lambda: None)
    prompt._screen = screen = io.StringIO()
    for line in ("kill me now", "quit now", "bad 3 4", "dump a b"):
        prompt.execute(line)
    assert screen.getvalue().splitlines() == [
        "kill does not take me now. It is: kill",
        "quit does not take now. It is: quit",
        "bad does not take 3 4. It is: bad [N]",
        "dump does not take a b. It is: dump [FILE]",
    ]
    assert not prompt._leaving


def test_a_program_in_this_folder_is_not_called_not_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leak").touch(mode=0o755)
    with pytest.raises(NoSuchProgram, match="leak is not in PATH") as raised:
        process.find_program("leak")
    assert "./leak" in raised.value.hint


def test_a_thread_of_the_kernel_is_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_status", lambda pid: {"State": "S (sleeping)", "Uid": "0 0 0 0"})
    with pytest.raises(NoSuchProcess, match="thread of the kernel"):
        process.check_attachable(2)


def test_the_summary_replaces_a_link_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    precious, link = tmp_path / "precious", tmp_path / "summary.json"
    precious.write_text("precious")
    link.symlink_to(precious)
    outfile.write_json(link, {"type": "\x1b[2J"})
    assert precious.read_text() == "precious"
    assert not link.is_symlink()
    assert link.stat().st_mode & 0o777 == 0o600
    assert "\\u001b[2J" in link.read_text()
    assert "\x1b" not in link.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_summary_for_which_there_is_no_space_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", tmp_path], check=True)
    try:
        with pytest.raises(BadUsage, match="No space left on device"):
            outfile.check_writable(tmp_path / "summary.json", "summary")
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_summary_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(outfile.OutputError, match="No space"):
        outfile.write_json(path, {})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["summary.json"]


def _screen(written: str, columns: int) -> list[str]:
    """What a terminal shows of it, a line each, blanks at their ends left out: wrapping begins with what does not fit."""
    lines, column = [[" "] * columns], 0
    for character in written:
        if character == "\r":
            column = 0
        elif character == "\n" or column == columns:
            lines.append([" "] * columns)
            column = 0
        if character not in "\r\n":
            lines[-1][column] = character
            column += 1
    return ["".join(line).rstrip() for line in lines]


@pytest.mark.parametrize("left", ["", "half a line", "x" * 39, "x" * 40, "a line\n"])
def test_what_is_said_begins_on_a_line_of_its_own_wherever_the_program_left_the_terminal(left: str) -> None:
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (20, 40))
    said = "from frida_rtetrack.reporters.console import ConsoleReporter as C; C().problem('it')"
    os.write(slave, left.encode())
    subprocess.run(
        [sys.executable, "-c", said], stderr=slave, check=True, timeout=60, env={**os.environ, "NO_COLOR": "1"}
    )
    shown = _screen(os.read(master, 4096).decode(), 40)
    before = left.splitlines()
    assert shown == [*before, "rtetrack-frida: it", ""]


def test_of_a_host_that_tracks_nothing_there_is_nothing_to_ask() -> None:
    host = Host(Options(dump_path=cast(Any, "/tmp/as-text")))
    assert host.options.dump_path == Path("/tmp/as-text")
    for ask in (host.stats, host.summary, host.verify, host.kill, host.dump, lambda: host.bad_frees, lambda: host.pid):
        with pytest.raises(NotLive, match="Nothing is tracked yet"):
            ask()
    host.close()
