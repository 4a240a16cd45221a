"""Whether a run passes: what was found, less what a suppression names. For a CI that ends with an exit status of its own."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.options import LeakKind
from frida_rtetrack.reports.callsites import CallSite
from frida_rtetrack.reports.growth import Growing
from frida_rtetrack.reports.lost import LostReport
from frida_rtetrack.reports.summary import Leaks, Summary
from frida_rtetrack.symbols.names import Stack
from frida_rtetrack.symbols.own import innermost_own

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
        """Whether it names a function, a source file or a module (its path, or its base name) of one of the frames."""
        return stack is not None and any(
            text is not None and self._expression.search(text) is not None
            for frame in stack.frames
            for text in (frame.function, frame.file, frame.module_path, frame.module)
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
        found.append(suppression(line, f"Line {number} of {path}"))
    return found


def suppression(line: str, where: str = "This") -> Suppression:
    """The suppression that `line` is; `where` names it in the error. Raises BadUsage."""
    kind, colon, pattern = line.partition(":")
    if kind not in KINDS or not colon or not pattern:
        raise BadUsage(f"{where} is no suppression: {line!r}.", "Write leak:FUNCTION or badfree:FUNCTION.")
    return Suppression(kind, pattern)


@dataclass(frozen=True, slots=True)
class Gate:
    """What a run must keep to. Bad frees, and what `--verify` found, are never right."""

    leak_check: Collection[LeakKind] = ()
    """What counts as a leak; that it cannot be told is no pass."""
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
        left = sum(not self.suppresses("badfree", report.stack) for report in found.bad_frees)
        left += found.bad_frees_not_kept
        if left:
            yield f"{left:,} bad free{'s' * (left != 1)}."

    def _leaks(self, found: Summary) -> Iterator[str]:
        if LeakKind.ALL in self.leak_check:
            yield from self._live_at_cleanup(found.leaks)
        if found.leak_check is None:
            return
        if found.leak_check.lost is not None:
            yield from self._lost(found.leak_check.lost)
        if found.leak_check.growing is not None:
            yield from self._growing(found.leak_check.growing)
        yield from found.leak_check.not_told

    def _live_at_cleanup(self, found: Leaks | None) -> Iterator[str]:
        if found is None:
            yield "Leaks cannot be told: the program never called rte_eal_cleanup."
        elif left := self._unsuppressed(found.call_sites):
            yield f"{_amount(left)} leaked."

    def _lost(self, found: LostReport) -> Iterator[str]:
        """What is lost with a block that is suppressed goes with it, as with LeakSanitizer."""
        lost, indirectly = (
            self._unsuppressed(found.lost.call_sites),
            self._unsuppressed(found.indirectly_lost.call_sites),
        )
        if lost:
            yield f"{_amount(lost)} lost: nothing points there any more" + (
                f"; by them {_amount(indirectly)}." if indirectly else "."
            )
        elif indirectly and not found.lost.blocks:
            yield f"{_amount(indirectly)} lost: only a lost block of EAL's own points there."

    def _growing(self, found: Sequence[Growing]) -> Iterator[str]:
        left = [site for site in found if not self.suppresses("leak", site.stack)]
        if left:
            grown = sum(site.grown_bytes for site in left)
            yield f"{len(left):,} call site{'s' * (len(left) != 1)} grew without an end, by {grown:,} bytes."

    def _unsuppressed(self, sites: Sequence[CallSite]) -> list[CallSite]:
        return [site for site in sites if not self.suppresses("leak", site.stack)]

    def _others(self, found: Summary) -> Iterator[str]:
        if found.damage:
            yield "The program's session memory was damaged: something may be missing."
        if found.verified is not None and bool(found.verified):
            yield "The live set differs from DPDK's own heap."
        if self.max_bytes is not None and found.peak_bytes > self.max_bytes:
            yield f"{found.peak_bytes:,} bytes were live at the most, {self.max_bytes:,} are allowed."

    def suppresses(self, kind: str, stack: Stack | None) -> bool:
        """Whether one of the suppressions of this kind names the stack; that one is used then."""
        for each in self.suppressions:
            if each.kind == kind and each.matches(stack):
                each.used += 1
                return True
        return False


def _amount(sites: Sequence[CallSite]) -> str:
    blocks = sum(site.blocks for site in sites)
    return f"{sum(site.size_bytes for site in sites):,} bytes in {blocks:,} block{'s' * (blocks != 1)}"


def suppressions_for(found: Summary) -> Iterator[str]:
    """Lines for a file of suppressions that name everything in `found`: by the innermost frame that is the program's own."""
    for kind, stacks in (
        ("badfree", [report.stack for report in found.bad_frees]),
        ("leak", [site.stack for site in _leaking(found)]),
    ):
        names = (_pattern(stack) for stack in stacks)
        yield from dict.fromkeys(f"{kind}:^{name}$" for name in names if name is not None)


def _leaking(found: Summary) -> Iterator[CallSite | Growing]:
    """Whatever a leak check may find fault with."""
    if found.leaks is not None:
        yield from found.leaks.call_sites
    if found.leak_check is not None and found.leak_check.lost is not None:
        yield from found.leak_check.lost.lost.call_sites
        yield from found.leak_check.lost.indirectly_lost.call_sites
    if found.leak_check is not None and found.leak_check.growing is not None:
        yield from found.leak_check.growing


def _pattern(stack: Stack | None) -> str | None:
    """What names the innermost frame that is the program's own: its function, or the module where that has no name.

    Where none is its own, the innermost function that has a name.
    """
    frames = () if stack is None else stack.frames
    own = innermost_own(frames)
    if own is not None:
        return frames[own].function or frames[own].module
    return next((frame.function for frame in frames if frame.function is not None), None)
