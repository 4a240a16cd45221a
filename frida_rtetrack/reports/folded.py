"""Equal bad frees, told once: of one kind, with the same stacks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from frida_rtetrack.tracking.badfree import BadFreeReport


@dataclass(frozen=True, slots=True)
class Folded:
    """The first of equal bad frees, how many there were, and when the last one happened (monotonic ns)."""

    first: BadFreeReport
    count: int
    last_ns: int

    @property
    def seconds(self) -> float:
        """From the first to the last."""
        return (self.last_ns - self.first.timestamp_ns) / 1e9


def folded(reports: Iterable[BadFreeReport]) -> list[Folded]:
    """`reports`, in the order in which they happened, with equal ones together, in the order of the first of each."""
    found: dict[tuple[object, ...], Folded] = {}
    for report in reports:
        known = found.get(report.site)
        found[report.site] = (
            Folded(report, 1, report.timestamp_ns)
            if known is None
            else Folded(known.first, known.count + 1, max(known.last_ns, report.timestamp_ns))
        )
    return list(found.values())
