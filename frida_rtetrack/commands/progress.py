"""What the command is at while it comes into a program: told where that takes a second or more."""

from __future__ import annotations

import threading
import time

from frida_rtetrack.reporters import text
from frida_rtetrack.reporters.console import ConsoleReporter

FIRST_SECONDS = 0.9
AGAIN_SECONDS = 5.0
LOOK_SECONDS = 0.1


class ProgressReporter(ConsoleReporter):
    """Says what is being done, from the first second on, whenever that changes, and that it still is every few seconds."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet`: says none of it."""
        super().__init__(quiet=quiet)
        self._says_steps = not quiet
        self._step = ""
        self._arrived = threading.Event()
        self._teller: threading.Thread | None = None

    def step(self, what: str) -> None:
        self._step = what
        if self._teller is None and self._says_steps:
            self._teller = threading.Thread(target=self._tell, name="progress", daemon=True)
            self._teller.start()

    def arrived(self) -> None:
        """It is in, or it failed: nothing of it is said any more."""
        self._arrived.set()
        if self._teller is not None:
            self._teller.join()

    def _tell(self) -> None:
        begun, said, said_at = time.monotonic(), "", 0.0
        if self._arrived.wait(FIRST_SECONDS):
            return
        while True:
            now, step = time.monotonic(), self._step
            if step != said or now - said_at >= AGAIN_SECONDS:
                self.say(f"rtetrack-frida: {step} ({text.duration(now - begun)})")
                said, said_at = step, now
            if self._arrived.wait(LOOK_SECONDS):
                return
