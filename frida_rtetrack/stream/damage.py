"""What in the session memory cannot be: every process that is tracked writes it, and nothing there has to be true."""

from __future__ import annotations

import threading
from collections import Counter


class Damage:
    """Counts what was left out, by what it is; safe to use from any thread."""

    def __init__(self) -> None:
        """None so far."""
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, what: str, number: int = 1) -> None:
        """`number` records of kind `what` ("stacks") were found wrong, and left out."""
        with self._lock:
            self._counts[what] += number

    @property
    def found(self) -> int:
        """How many records were left out in all; one that is asked for again counts again."""
        with self._lock:
            return sum(self._counts.values())

    def counts(self) -> dict[str, int]:
        """How many records of each kind."""
        with self._lock:
            return dict(self._counts)

    def __str__(self) -> str:
        kinds = ", ".join(f"{number:,} {what}" for what, number in self.counts().items())
        return f"The program's session memory is damaged ({kinds} so far): what is wrong there is left out."
