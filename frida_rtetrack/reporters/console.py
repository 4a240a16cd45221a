"""What a user sees while a program is tracked: bad frees at once, dumps in a line, the summary at the end.

Everything goes to standard error, so that the program's own standard output stays clean.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from frida_rtetrack.observer import Observer
from frida_rtetrack.reporters import streams, text
from frida_rtetrack.symbols.visible import visible
from frida_rtetrack.target.target import Ending
from frida_rtetrack.tracking.badfree import BadFreeReport

SHOWN_PER_SITE = 100


class ConsoleReporter(Observer):
    """Prints as it happens. Of bad frees with the same stacks the first is shown whole, the next in a line each."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet`: bad frees and problems only."""
        self._quiet = quiet
        self._seen: Counter[tuple[object, ...]] = Counter()
        self._first: dict[tuple[object, ...], int] = {}
        self._lock = threading.Lock()

    def say(self, *lines: str) -> None:
        """Prints lines to standard error, in one piece."""
        with self._lock:
            said = "".join(visible(line) + "\n" for line in lines)
            streams.write(sys.stderr, streams.to_new_line(sys.stderr) + said)

    def hooked(self, hooks: list[dict[str, str]]) -> None:
        if self._quiet or not hooks:
            return
        ways: Counter[str] = Counter(hook["how"] for hook in hooks)
        how = ", ".join(f"{number} by {way}" for way, number in ways.items())
        self.say(f"rtetrack-frida: tracking {len(hooks)} functions of {os.path.basename(hooks[0]['module'])} ({how})")

    def bad_free(self, report: BadFreeReport) -> None:
        self._seen[report.site] += 1
        seen = self._seen[report.site]
        if seen == 1:
            self._first[report.site] = report.number
            self.say(*text.bad_free(report))
        elif seen <= SHOWN_PER_SITE:
            self.say(text.bad_free_title(report), f"    The same stacks as bad free {self._first[report.site]}.")
        elif seen == SHOWN_PER_SITE + 1:
            self.say(
                f"rtetrack-frida: more bad frees with the stacks of bad free {self._first[report.site]} are counted, not shown."
            )

    def dumped(self, path: Path, blocks: int, why: str) -> None:
        if not self._quiet:
            self.say(f"rtetrack-frida: {why}: {text.count(blocks, 'live allocation')} written to {path}")

    def forked(self, parent: int, child: int) -> None:
        if not self._quiet:
            self.say(f"rtetrack-frida: process {parent} forked process {child}, tracked too")

    def problem(self, text: str) -> None:
        self.say(f"rtetrack-frida: {text}")

    def output(self, data: bytes) -> None:
        streams.write(sys.stdout, data.decode(errors="replace"))

    def ended(self, ending: Ending) -> None:
        pass


def print_help_of(error: Any) -> None:
    """Prints an error the way every error of ours looks."""
    hint = f" {error.hint}" if getattr(error, "hint", "") else ""
    streams.write(sys.stderr, streams.to_new_line(sys.stderr) + visible(f"rtetrack-frida: {error}{hint}") + "\n")
