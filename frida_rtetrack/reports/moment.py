"""The live blocks of one moment of a run, with what their numbers stand for: what every report and export starts from."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.reports.summary import Start
from frida_rtetrack.symbols.names import BASELINE_LABEL, Names


@dataclass(frozen=True, slots=True)
class Run:
    """Which run of which program it was."""

    argv: tuple[str, ...]
    pid: int
    host: str
    """The machine's name."""
    start: Start
    engine: str
    version: str
    """Of rtetrack-frida."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What is live at one moment. `rows`: BLOCK_DTYPE (n,); `at_ns`: the moment, by the clock of `allocated_at_ns`."""

    run: Run
    rows: NDArray[np.void]
    names: Names
    at_ns: int
    temporary: int | None = None
    """Not None: `rows` are not live, but were freed before their thread had made so many further allocations."""

    @property
    def seconds(self) -> float:
        """Since the run's start."""
        return self.run.start.seconds_until(self.at_ns)

    def only(self, filters: Filters) -> Moment:
        """The same moment with the blocks that pass."""
        return replace(self, rows=filters.apply(self.rows, self.names, self.at_ns))


@dataclass(frozen=True, slots=True)
class Filters:
    """Which blocks a report is about; a block passes where it passes every one that is given."""

    type: str | None = None
    """A glob of the type."""
    socket: int | None = None
    """The NUMA socket that was asked for; -1: any."""
    thread: str | None = None
    """A tid, or a glob of the name, of the thread that allocated it. A block of the baseline has none."""
    module: str | None = None
    """A glob of the base name of a module that the allocating stack passes through."""
    min_bytes: int = 0
    """The smallest block."""
    older_seconds: float | None = None
    """The youngest block's age."""

    def apply(self, rows: NDArray[np.void], names: Names, at_ns: int) -> NDArray[np.void]:
        """Those of `rows`, BLOCK_DTYPE (n,), that pass. `at_ns`: the moment from which ages count."""
        return rows if self == Filters() else rows[self.passes(rows, names, at_ns)]

    def passes(self, rows: NDArray[np.void], names: Names, at_ns: int) -> NDArray[np.bool_]:
        """Which of `rows`, BLOCK_DTYPE (n,), pass."""
        passes = rows["size_bytes"] >= self.min_bytes
        if self.socket is not None:
            passes &= rows["socket"] == self.socket
        if self.older_seconds is not None:
            passes &= rows["allocated_at_ns"] <= at_ns - round(self.older_seconds * 1e9)
        if self.type is not None:
            passes &= _each(type_numbers(rows), lambda number: _matches(names.label_text(number), self.type))
        if self.thread is not None:
            passes &= ~rows["baseline"]
            passes &= _each(rows["thread"], lambda number: self._is_thread(number, names))
        if self.module is not None:
            passes &= _each(rows["stack"], lambda number: self._passes_through(number, names))
        return passes

    def _is_thread(self, number: int, names: Names) -> bool:
        thread = names.thread(number)
        return str(thread.tid) == self.thread or _matches(thread.name, self.thread)

    def _passes_through(self, number: int, names: Names) -> bool:
        stack = names.stack(number)
        return stack is not None and any(_matches(frame.module or "", self.module) for frame in stack.frames)


ALL_BLOCKS = Filters()


def type_numbers(rows: NDArray[np.void]) -> NDArray[np.uint32]:
    """The numbers of the types of `rows`, BLOCK_DTYPE (n,): BASELINE_LABEL where the baseline knew none."""
    nameless = rows["baseline"] & (rows["label"] == 0)
    return np.where(nameless, np.uint32(BASELINE_LABEL), rows["label"])


def _each(numbers: NDArray[Any], passes: Callable[[int], bool]) -> NDArray[np.bool_]:
    """`passes` of each of `numbers` (n,), asked once of each that is different."""
    distinct, which = np.unique(numbers, return_inverse=True)
    return np.array([passes(int(number)) for number in distinct], np.bool_)[which]


def _matches(text: str, glob: str | None) -> bool:
    return glob is not None and fnmatch.fnmatchcase(text, glob)
