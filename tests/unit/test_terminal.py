"""What a spawned program's terminal shows of it, and what is typed there."""

from __future__ import annotations

import os
import termios
import time
from collections.abc import Callable

import pytest

from frida_rtetrack.commands.terminal import ProgramTerminal


class Program:
    """The other side of the terminal."""

    def __init__(self) -> None:
        self.shown: list[bytes] = []
        self.terminal = ProgramTerminal(self.shown.append)
        self.side = os.dup(self.terminal.slave)
        attributes = termios.tcgetattr(self.side)
        attributes[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG)
        termios.tcsetattr(self.side, termios.TCSANOW, attributes)
        self.terminal.start()

    def write(self, data: bytes) -> None:
        os.write(self.side, data)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_whole_lines_are_handed_on_and_what_is_begun_waits() -> None:
    program = Program()
    program.write(b"one\ntwo\nask> ")
    eventually(lambda: program.terminal.unfinished == "ask> ")
    assert b"".join(program.shown) == b"one\ntwo\n"
    program.write(b"\x1b[2J\x1b]0;title\x07y\x08\r\x1b[1mpass\tword:\x07 ")
    eventually(lambda: program.terminal.unfinished == "pass    word: ")
    os.close(program.side)
    program.terminal.close()
    assert b"".join(program.shown).endswith(b"word:\x07 \n"), "the end of what was begun"


def test_what_never_ends_a_line_is_handed_on_some_time() -> None:
    program = Program()
    for _ in range(30):
        program.write(b"x" * 4000)
    eventually(lambda: sum(map(len, program.shown)) > 60_000)
    assert len(program.terminal.unfinished) < 1 << 17


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("a 'b", b"a 'b\n"),
        ("", b"\n"),
        ("^C", b"\x03"),
        ("^d", b"\x04"),
        ("^?", b"\x7f"),
        ("^[", b"\x1b"),
        ("^C x", b"^C x\n"),
    ],
)
def test_a_caret_and_a_letter_alone_are_a_key(typed: str, sent: bytes) -> None:
    program = Program()
    program.terminal.type(typed)
    assert os.read(program.side, 100) == sent
