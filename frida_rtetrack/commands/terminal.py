"""A pseudo-terminal for a spawned program, so that its output can be shown above the prompt and it still sees one."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import sys
import termios
import threading
from collections.abc import Callable

MOST_UNFINISHED_BYTES = 1 << 16
_CONTROL = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|[\x00-\x08\x0b-\x1f\x7f]"
)
"""Escape sequences (ECMA-48), and characters that do not show."""
_CARET = re.compile(r"\^([@-_a-z?])")


class ProgramTerminal:
    """Master side of the program's terminal."""

    def __init__(self, on_output: Callable[[bytes], None]) -> None:
        """Whole lines that the program writes go to `on_output`, on a thread of its own."""
        self._master, self.slave = os.openpty()
        self._size = b""
        self.match_size()
        self._on_output = on_output
        self._unfinished = b""
        self.on_unfinished: Callable[[], None] = lambda: None
        """Called where `unfinished` has changed, on that thread."""
        self._thread = threading.Thread(target=self._relay, name="terminal", daemon=True)

    def start(self) -> None:
        """Begins to relay; call it once the program has the slave side."""
        os.close(self.slave)
        self._thread.start()

    def match_size(self) -> None:
        """Gives the program's terminal the size of ours, of which the program hears where it has changed."""
        try:
            columns, rows = os.get_terminal_size(sys.__stdout__.fileno())  # type: ignore[union-attr]
        except (OSError, ValueError):
            return
        size = struct.pack("HHHH", rows, columns, 0, 0)
        if size != self._size:
            self._size = size
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def follow_size(self) -> None:
        """Does so whenever ours changes, from now on; where nobody else hears of that."""
        signal.signal(signal.SIGWINCH, lambda number, frame: self.match_size())

    def type(self, text: str) -> None:
        """Types `text` and Enter at the program's terminal; `^C` alone is that key. Raises OSError once the program is gone."""
        key = _CARET.fullmatch(text)
        os.write(self._master, _control(key[1]) if key else text.encode(errors="surrogateescape") + b"\r")

    @property
    def unfinished(self) -> str:
        """What the program has written since the last whole line, as far as it shows: its own prompt, most of all."""
        shown = self._unfinished.rstrip(b"\r").rpartition(b"\r")[2]
        return _CONTROL.sub(b"", shown).decode(errors="replace").expandtabs()

    def close(self) -> None:
        """Waits for the last output."""
        self._thread.join(2)

    def _relay(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: nobody has the other side open any more
                data = b""
            if not data:
                break
            self._take(data)
        if self._unfinished:
            self._show(self._unfinished + b"\n", b"")

    def _take(self, data: bytes) -> None:
        whole, newline, rest = (self._unfinished + data).rpartition(b"\n")
        if len(rest) > MOST_UNFINISHED_BYTES:
            whole, newline, rest = whole + newline + rest, b"\n", b""
        self._show(whole + newline, rest)

    def _show(self, whole: bytes, rest: bytes) -> None:
        changed, self._unfinished = rest != self._unfinished, rest
        if whole:
            self._on_output(whole.replace(b"\r\n", b"\n"))
        if changed:
            self.on_unfinished()


def _control(key: str) -> bytes:
    """What a terminal sends for Ctrl and `key`; ? is Delete."""
    return b"\x7f" if key == "?" else bytes([ord(key.upper()) & 0x1F])
