"""Runs that never were: rows of live blocks with names for their numbers, for what reports and exports make of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from frida_rtetrack.reports.moment import Moment, Run
from frida_rtetrack.reports.summary import Start
from frida_rtetrack.stream.events import Api
from frida_rtetrack.symbols.names import BASELINE_LABEL, Names, Stack, Thread
from frida_rtetrack.symbols.symbolizer import Frame
from frida_rtetrack.tracking.blocktable import BLOCK_DTYPE

START = Start(datetime(2026, 3, 1, 12, tzinfo=UTC), 1_000_000_000_000)
SECOND = 1_000_000_000


def frame(function: str | None, module: str | None = "app", **more: Any) -> Frame:
    """A frame of `module`, which lies at 0x400000."""
    offset = more.pop("offset", 0x100 + sum(map(ord, function or "")) % 0xF00)
    known = {
        "address": 0x400000 + offset,
        "module": module,
        "offset": None if module is None else offset,
        "function": function,
        "function_offset": None if function is None else 4,
        "file": None,
        "line": None,
        "inlined": False,
        "module_path": None if module is None else f"/opt/{module}",
        "symbol": function,
    }
    return Frame(**(known | more))


def stack(*functions: str) -> Stack:
    """A stack of these functions of `app`, innermost first."""
    return Stack(tuple(map(frame, functions)), None)


@dataclass
class MadeUpNames:
    """Names by number; a number without one is as in a session: no stack, type `<unknown>`."""

    stacks: Mapping[int, Stack] = field(default_factory=dict)
    labels: Mapping[int, str] = field(default_factory=dict)
    threads: Mapping[int, Thread] = field(default_factory=dict)

    def stack(self, number: int) -> Stack | None:
        return self.stacks.get(number)

    def label_text(self, number: int, *, baseline: bool = False) -> str:
        if number == BASELINE_LABEL or (baseline and number == 0):
            return "<baseline>"
        return self.labels.get(number, "<unknown>")

    def thread(self, number: int) -> Thread:
        return self.threads.get(number, Thread(4000, 4000 + number, f"thread-{number}"))


def rows(*blocks: Mapping[str, int]) -> NDArray[np.void]:
    """BLOCK_DTYPE (n,): one row a mapping; fields that are not given are those of some ordinary block."""
    found = np.zeros(len(blocks), BLOCK_DTYPE)
    for number, block in enumerate(blocks):
        ordinary = {"address": 0x1000 * (number + 1), "size_bytes": 64, "sequence": number, "api": Api.MALLOC}
        for name, value in {
            **ordinary,
            "thread": 1,
            "socket": -1,
            "allocated_at_ns": START.monotonic_ns,
            **block,
        }.items():
            found[name][number] = value
    return found


def moment(live: NDArray[np.void], names: MadeUpNames, seconds: float = 10.0, host: str = "worker-1") -> Moment:
    """What is live so long after the start of `./app -l 0-1`."""
    run = Run(("./app", "-l", "0-1"), 4711, host, START, "native", "1.0")
    return Moment(run, live, cast("Names", names), START.monotonic_ns + round(seconds * SECOND))


HOSTILE = ("a;b c", "</script><script>alert(1)</script>", "\x1b[2J", "x\ny", "=1+1", "\udcff", "öä", 'q"u,o', "")
FUNCTIONS = ("main", "rte_zmalloc_socket", "operator new(unsigned long)", None, *HOSTILE)

_FRAMES = st.builds(
    frame,
    st.sampled_from(FUNCTIONS),
    st.sampled_from(("app", "librte_eal.so.23", None)),
    inlined=st.booleans(),
    file=st.sampled_from((None, "/src/app.c")),
    line=st.sampled_from((None, 12)),
)
_STACKS = st.builds(lambda frames: Stack(tuple(frames), None), st.lists(_FRAMES, max_size=6))


@st.composite
def moments(draw: st.DrawFn) -> Moment:
    """Any moment: blocks of a few stacks, types, threads and sockets, with names of any kind."""
    names = MadeUpNames(
        draw(st.dictionaries(st.integers(1, 5), _STACKS, max_size=5)),
        draw(st.dictionaries(st.integers(0, 4), st.sampled_from(HOSTILE), max_size=4)),
        {1: Thread(4000, 4001, draw(st.sampled_from(HOSTILE)))},
    )
    block = st.fixed_dictionaries(
        {
            "size_bytes": st.integers(0, 1 << 40),
            "stack": st.integers(0, 6),
            "label": st.integers(0, 5),
            "thread": st.integers(0, 3),
            "socket": st.integers(-1, 1),
            "baseline": st.booleans(),
            "allocated_at_ns": st.integers(START.monotonic_ns, START.monotonic_ns + 9 * SECOND),
        }
    )
    return moment(rows(*draw(st.lists(block, max_size=20))), names)
