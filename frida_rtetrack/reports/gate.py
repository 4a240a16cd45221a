"""Whether a run passes: what was found, less what a suppression names. For a CI that ends with an exit status of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.reports.summary import Summary
from frida_rtetrack.symbols.names import Stack

KINDS = ("leak", "badfree")


@dataclass(slots=True)
class Suppression:
    """One line `kind:pattern` of a file of suppressions, and how often it was used."""

    kind: str
    pattern: str
    used: int = 0
    _expression: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """As LeakSanitizer reads a pattern (TemplateMatch, sanitizer_common): `*` is anything, `^` and `$` bind the ends."""
        text = re.escape(self.pattern.removeprefix("^").removesuffix("$")).replace(r"\*", ".*")
        start, end = r"\A" if self.pattern.startswith("^") else "", r"\Z" if self.pattern.endswith("$") else ""
        self._expression = re.compile(start + text + end, re.DOTALL)

    def matches(self, stack: Stack | None) -> bool:
        """Whether it names a function, a module or a source file of one of the frames."""
        return stack is not None and any(
            text is not None and self._expression.search(text) is not None
            for frame in stack.frames
            for text in (frame.function, frame.module, frame.file)
        )

    def __str__(self) -> str:
        return f"{self.kind}:{self.pattern}"


def read_suppressions(path: Path) -> list[Suppression]:
    """The suppressions in the file `path`: one a line, `#` begins a comment line. Raises BadUsage."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise BadUsage(f"The suppressions cannot be read from {path}: {error.strerror}.") from None
    found = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        kind, colon, pattern = line.partition(":")
        if kind not in KINDS or not colon or not pattern:
            raise BadUsage(
                f"Line {number} of {path} is no suppression: {line!r}.", "Write leak:FUNCTION or badfree:FUNCTION."
            )
        found.append(Suppression(kind, pattern))
    return found


@dataclass(frozen=True, slots=True)
class Gate:
    """What a run must keep to. Bad frees, and what `--verify` found, are never right."""

    leak_check: bool = False
    """What is live when the program calls rte_eal_cleanup, EAL's own left out, is a leak."""
    max_bytes: int | None = None
    """For the high watermark of live bytes."""
    suppressions: Sequence[Suppression] = ()

    def failures(self, found: Summary) -> list[str]:
        """What is wrong with a run, one sentence each; empty: it passes. Nothing tracked is no pass."""
        if not found.hooks:
            return ["Nothing was tracked."]
        return [*self._bad_frees(found), *self._leaks(found), *self._others(found)]

    def unused(self) -> list[Suppression]:
        """The suppressions that named nothing in what `failures` has looked at."""
        return [each for each in self.suppressions if not each.used and (each.kind != "leak" or self.leak_check)]

    def _bad_frees(self, found: Summary) -> Iterator[str]:
        left = sum(not self._suppressed("badfree", report.stack) for report in found.bad_frees)
        left += found.bad_frees_not_kept
        if left:
            yield f"{left:,} bad free{'s' * (left != 1)}."

    def _leaks(self, found: Summary) -> Iterator[str]:
        if not self.leak_check:
            return
        if found.leaks is None:
            yield "Leaks cannot be told: the program never called rte_eal_cleanup."
            return
        suppressed = [site for site in found.leaks.call_sites if self._suppressed("leak", site.stack)]
        blocks = found.leaks.blocks - sum(site.blocks for site in suppressed)
        size_bytes = found.leaks.size_bytes - sum(site.size_bytes for site in suppressed)
        if blocks:
            yield f"{size_bytes:,} bytes in {blocks:,} block{'s' * (blocks != 1)} leaked."

    def _others(self, found: Summary) -> Iterator[str]:
        if found.damage:
            yield "The program's session memory was damaged: something may be missing."
        if found.verified is not None and bool(found.verified):
            yield "The live set differs from DPDK's own heap."
        if self.max_bytes is not None and found.peak_bytes > self.max_bytes:
            yield f"{found.peak_bytes:,} bytes were live at the most, {self.max_bytes:,} are allowed."

    def _suppressed(self, kind: str, stack: Stack | None) -> bool:
        for each in self.suppressions:
            if each.kind == kind and each.matches(stack):
                each.used += 1
                return True
        return False


def suppressions_for(found: Summary) -> Iterator[str]:
    """Lines for a file of suppressions that name everything in `found`: by the innermost frame that is not DPDK's."""
    for kind, stacks in (
        ("badfree", [report.stack for report in found.bad_frees]),
        ("leak", [site.stack for site in found.leaks.call_sites] if found.leaks else []),
    ):
        names = (_own_function(stack) for stack in stacks)
        yield from dict.fromkeys(f"{kind}:^{name}$" for name in names if name is not None)


def _own_function(stack: Stack | None) -> str | None:
    frames = () if stack is None else stack.frames
    named = [frame for frame in frames if frame.function is not None]
    own = [frame for frame in named if not (frame.module or "").startswith("librte_")]
    return next((frame.function for frame in own or named), None)
