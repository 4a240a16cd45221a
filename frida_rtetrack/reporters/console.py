"""What a user sees while a program is tracked: bad frees at once, dumps in a line, the summary at the end.

Everything goes to standard error, so that the program's own standard output stays clean.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from frida_rtetrack.observer import Observer
from frida_rtetrack.reporters import streams, text
from frida_rtetrack.reporters.colour import painted
from frida_rtetrack.reporters.tone import Line, Tone
from frida_rtetrack.reports.folded import Folded
from frida_rtetrack.target.target import Ending
from frida_rtetrack.tracking.badfree import BadFreeReport

NEAR = "near"
"""How a function is redirected where nothing is in the way: by a jump of five bytes."""
TOLD_AGAIN_AT = (2, 3, 4, 5, 10, 100, 1000, 10_000, 100_000, 1_000_000)
"""How often a bad free must have happened for that to be said while it goes on."""


class ConsoleReporter(Observer):
    """Prints as it happens. Of bad frees with the same stacks the first is shown whole, the others are counted."""

    def __init__(self, *, quiet: bool = False) -> None:
        """`quiet`: bad frees and problems only."""
        self._quiet = quiet
        self._seen: dict[tuple[object, ...], Folded] = {}
        self._lock = threading.Lock()

    def say(self, *lines: str) -> None:
        """Prints lines to standard error, in one piece."""
        with self._lock:
            streams.write(sys.stderr, streams.to_new_line(sys.stderr) + painted(lines, sys.stderr))

    def hooked(self, hooks: list[dict[str, str]]) -> None:
        if self._quiet or not hooks:
            return
        ways = Counter(hook["how"] for hook in hooks if hook["how"] != NEAR)
        slower = "".join(f", {number} of them by {way}" for way, number in ways.items())
        self.say(f"rtetrack-frida: tracking {len(hooks)} functions of {os.path.basename(hooks[0]['module'])}{slower}")

    def bad_free(self, report: BadFreeReport) -> None:
        known = self._seen.get(report.site)
        if known is None:
            self._seen[report.site] = Folded(report, 1, report.timestamp_ns)
            self.say(*text.bad_free(report))
            return
        self._seen[report.site] = now = replace(known, count=known.count + 1, last_ns=report.timestamp_ns)
        if now.count in TOLD_AGAIN_AT:
            self.say(
                f"rtetrack-frida: bad free {now.first.number} again, with the same stacks: {now.count:,} times until now"
            )

    def dumped(self, path: Path, blocks: int, why: str) -> None:
        if not self._quiet:
            self.say(f"rtetrack-frida: {why}: {text.count(blocks, 'live allocation')} written to {path}")

    def forked(self, parent: int, child: int) -> None:
        if not self._quiet:
            self.say(f"rtetrack-frida: process {parent} forked process {child}, tracked too")

    def problem(self, text: str) -> None:
        self.say(Line(f"rtetrack-frida: {text}", Tone.WRONG))

    def output(self, data: bytes) -> None:
        streams.write(sys.stdout, data.decode(errors="replace"))

    def ended(self, ending: Ending) -> None:
        """What was only counted, where no summary will say it."""
        if self._quiet:
            again = [each for each in self._seen.values() if each.count > 1]
            self.say(*(f"rtetrack-frida: bad free {each.first.number}: {text.again(each)}" for each in again))


def print_help_of(error: Any) -> None:
    """Prints an error the way every error of ours looks."""
    hint = f" {error.hint}" if getattr(error, "hint", "") else ""
    said = painted([Line(f"rtetrack-frida: {error}{hint}", Tone.WRONG)], sys.stderr)
    streams.write(sys.stderr, streams.to_new_line(sys.stderr) + said)
