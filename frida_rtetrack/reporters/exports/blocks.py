"""CSV with a line for each live block, largest first, and Parquet with the same columns; quoted as RFC 4180 says."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from frida_rtetrack.reports.moment import Moment
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


def write(moment: Moment, file: BinaryIO) -> None:
    """Writes the header and the lines."""
    file.write((",".join(COLUMNS) + "\n").encode())
    lines = moment_lines(moment)
    while True:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for _, line in zip(range(_ROWS_AT_ONCE), lines, strict=False):
            writer.writerow(line)
        if not text.tell():
            return
        file.write(text.getvalue().encode())


def moment_lines(moment: Moment) -> Iterator[tuple[object, ...]]:
    """The fields of each live block, as COLUMNS has them."""
    rows, names, start = moment.rows, moment.names, moment.run.start
    stacks: dict[int, str] = {}
    for row in rows[np.argsort(-rows["size_bytes"].astype(np.int64), kind="stable")]:
        baseline = bool(row["baseline"])
        thread = None if baseline else names.thread(int(row["thread"]))
        stack = int(row["stack"])
        if stack not in stacks:
            found = names.stack(stack)
            stacks[stack] = "" if found is None else " < ".join(map(frame_name, found.frames))
        yield (
            f"{int(row['address']):#x}",
            int(row["size_bytes"]),
            printable(names.label_text(int(row["label"]), baseline=baseline)),
            int(row["socket"]),
            "" if thread is None else thread.pid,
            "" if thread is None else thread.tid,
            "" if thread is None else printable(thread.name),
            "" if baseline else Api(int(row["api"])).function,
            "" if baseline else start.seconds_until(int(row["allocated_at_ns"])),
            "yes" if baseline else "no",
            stacks[stack],
        )
