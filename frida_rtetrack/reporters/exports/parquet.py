"""Parquet: a data set partitioned by host and run (`host=.../run=.../live.parquet`), for a fleet's runs in one query.

pyarrow is needed for it, and for nothing else here: `pip install 'rtetrack-frida[parquet]'`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.errors import RtetrackError
from frida_rtetrack.reporters.outfile import OutputError, whole
from frida_rtetrack.reports.moment import Moment, type_numbers
from frida_rtetrack.reports.profile import frame_name, printable
from frida_rtetrack.stream.events import Api

FILE = "live.parquet"
NO_THREAD = -1


class NoParquet(RtetrackError):
    """pyarrow is not installed."""

    HINT = "Install it: pip install 'rtetrack-frida[parquet]'."


def write(moment: Moment, folder: Path, *, run: str | None = None, force: bool = False) -> Path:
    """Adds the live blocks to the data set `folder`; returns the file, in a folder of its own for this host and run.

    `run`: what the run is called, its start and pid by default. Raises NoParquet, OutputError.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise NoParquet("Parquet is written by pyarrow, which is not installed.") from None
    name = run or f"{moment.run.start.wall:%Y%m%dT%H%M%SZ}-{moment.run.pid}"
    place = folder / f"host={quote(moment.run.host, safe='')}" / f"run={quote(name, safe='')}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The directory {place} cannot be made: {error.strerror}.") from None
    with whole(place / FILE, force=force) as file:
        pyarrow.parquet.write_table(_table(moment), file, compression="zstd")
    return place / FILE


def _table(moment: Moment) -> Any:
    """A row for each live block; columns as in blocks.COLUMNS, null instead of empty, and two of the whole run."""
    import pyarrow

    rows, names, start = moment.rows, moment.names, moment.run.start
    baseline = rows["baseline"]
    threads = {number: names.thread(number) for number in np.unique(rows["thread"][~baseline]).tolist()}

    def texts(numbers: NDArray[Any], text: Callable[[int], str | None]) -> Any:
        distinct, which = np.unique(numbers, return_inverse=True)
        values = [text(int(number)) for number in distinct]
        none = np.array([value is None for value in values], np.bool_)
        indices = pyarrow.array(which.astype(np.int32), mask=none[which])
        return pyarrow.DictionaryArray.from_arrays(
            indices, pyarrow.array([value or "" for value in values], pyarrow.string())
        )

    def stack(number: int) -> str | None:
        found = names.stack(number)
        return None if found is None else " < ".join(map(frame_name, found.frames))

    def of_thread(field: str) -> Any:
        numbers = [getattr(threads[each], field) if each in threads else 0 for each in rows["thread"].tolist()]
        return pyarrow.array(np.array(numbers, np.int64), mask=baseline)

    allocated = np.round((rows["allocated_at_ns"] - start.monotonic_ns) / 1e9, 6)
    program = printable(os.path.basename(moment.run.argv[0])) if moment.run.argv else None
    return pyarrow.table(
        {
            "address": rows["address"],
            "bytes": rows["size_bytes"],
            "type": texts(type_numbers(rows), lambda number: printable(names.label_text(number))),
            "socket": rows["socket"],
            "pid": of_thread("pid"),
            "tid": of_thread("tid"),
            "thread": texts(
                np.where(baseline, NO_THREAD, rows["thread"].astype(np.int32)),
                lambda number: None if number == NO_THREAD else printable(threads[number].name),
            ),
            "function": texts(
                np.where(baseline, Api.NONE, rows["api"]), lambda number: Api(number).function if number else None
            ),
            "allocated_seconds": pyarrow.array(allocated, mask=baseline),
            "baseline": baseline,
            "stack": texts(rows["stack"], stack),
            "program": texts(np.zeros(rows.size, np.uint8), lambda _: program),
            "at_seconds": np.full(rows.size, moment.seconds),
        }
    )
