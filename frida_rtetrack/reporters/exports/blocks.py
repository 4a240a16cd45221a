"""CSV with a line for each live block, largest first, and Parquet with the same columns; quoted as RFC 4180 says."""

from __future__ import annotations

import re
from typing import BinaryIO

import numpy as np

from frida_rtetrack.progress import following
from frida_rtetrack.reports.history import NO_THREAD
from frida_rtetrack.reports.moment import Moment, type_numbers
from frida_rtetrack.reports.profile import frame_name, printable
from frida_rtetrack.stream.events import Api

COLUMNS = (
    "address",
    "bytes",
    "type",
    "socket",
    "pid",
    "tid",
    "thread",
    "function",
    "allocated_seconds",
    "baseline",
    "stack",
)
"""`function` is DPDK's that handed it out; `allocated_seconds` counts from the run's start, and is empty for a block of
the baseline, as are pid, tid and thread; `stack` is innermost first, its frames separated by " < "."""

_ROWS_AT_ONCE = 1 << 12
_NEEDS_QUOTES = re.compile(r'[",\r\n]')
Texts = dict[int, str]


def write(moment: Moment, file: BinaryIO) -> None:
    """Writes the header and the lines."""
    file.write((",".join(COLUMNS) + "\n").encode())
    rows = moment.rows[np.argsort(-moment.rows["size_bytes"].astype(np.int64), kind="stable")]
    types, threads, stacks = _types(moment), _threads(moment), _stacks(moment)
    functions = {int(api): "" if api is Api.NONE else api.function for api in Api}
    starts = range(0, rows.size, _ROWS_AT_ONCE)
    for start in following("writing", starts, len(starts)):
        part = rows[start : start + _ROWS_AT_ONCE]
        seconds = np.round((part["allocated_at_ns"] - moment.run.start.monotonic_ns) / 1e9, 6)
        fields = zip(
            part["address"].tolist(),
            part["size_bytes"].tolist(),
            map(types.__getitem__, type_numbers(part).tolist()),
            part["socket"].tolist(),
            map(threads.__getitem__, np.where(part["baseline"], NO_THREAD, part["thread"].astype(np.int32)).tolist()),
            map(functions.__getitem__, np.where(part["baseline"], Api.NONE, part["api"]).tolist()),
            np.where(part["baseline"], "", seconds.astype(str)).tolist(),
            np.where(part["baseline"], "yes", "no").tolist(),
            map(stacks.__getitem__, part["stack"].tolist()),
            strict=True,
        )
        file.write("".join(map(_LINE.__mod__, fields)).encode())


_LINE = "%#x,%d,%s,%d,%s,%s,%s,%s,%s\n"
"""Pid, tid and thread are one text."""


def _types(moment: Moment) -> Texts:
    return {each: _field(moment.names.label_text(each)) for each in np.unique(type_numbers(moment.rows)).tolist()}


def _threads(moment: Moment) -> Texts:
    texts = {NO_THREAD: ",,"}
    for each in np.unique(moment.rows["thread"]).tolist():
        thread = moment.names.thread(each)
        texts[each] = f"{thread.pid},{thread.tid},{_field(thread.name)}"
    return texts


def _stacks(moment: Moment) -> Texts:
    texts = {}
    for each in np.unique(moment.rows["stack"]).tolist():
        stack = moment.names.stack(each)
        texts[each] = "" if stack is None else _field(" < ".join(map(frame_name, stack.frames)))
    return texts


def _field(text: str) -> str:
    """As RFC 4180, section 2, has it: in quotes, with quotes doubled, where it has to be."""
    text = printable(text)
    return '"' + text.replace('"', '""') + '"' if _NEEDS_QUOTES.search(text) else text
