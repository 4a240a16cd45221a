"""What sets the live set right besides the events: DPDK's own view, and that events are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]


def _none() -> Numbers:
    return np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Amendment:
    """One call of TrackingMap.mark_complete, mark_incomplete, insert_baseline or forget."""

    what: Literal["complete", "incomplete", "baseline", "forget"]
    addresses: Numbers
    """Of blocks, (n,)."""
    numbers: Numbers
    """Their sizes in bytes (baseline), or of which event each is (forget), (n,)."""
    since_sequence: int = 0
    timestamp_ns: int = 0

    @classmethod
    def of_completeness(cls, complete: bool) -> Amendment:
        """That every live block is known from here on, or not."""
        return cls("complete" if complete else "incomplete", _none(), _none())
