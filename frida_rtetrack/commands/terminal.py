"""A pseudo-terminal for a spawned program, so that its output can be shown above the prompt and it still sees one."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
import threading
from collections.abc import Callable


class ProgramTerminal:
    """Master side of the program's terminal."""

    def __init__(self, on_output: Callable[[bytes], None]) -> None:
        """What the program writes goes to `on_output`, on a thread of its own."""
        self._master, self.slave = os.openpty()
        self.match_size()
        self._on_output = on_output
        self._thread = threading.Thread(target=self._relay, name="terminal", daemon=True)

    def start(self) -> None:
        """Begins to relay; call it once the program has the slave side."""
        os.close(self.slave)
        self._thread.start()

    def match_size(self) -> None:
        """Gives the program's terminal the size of ours."""
        try:
            columns, rows = os.get_terminal_size(sys.stdout.fileno())
        except OSError:
            return
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, line: str) -> None:
        """Types `line` and Enter at the program's terminal. Raises OSError once the program is gone."""
        os.write(self._master, line.encode() + b"\n")

    def close(self) -> None:
        """Waits for the last output."""
        self._thread.join(2)

    def _relay(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: nobody has the other side open any more
                return
            if not data:
                return
            self._on_output(data.replace(b"\r\n", b"\n"))
