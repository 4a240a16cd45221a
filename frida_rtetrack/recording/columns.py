"""Events as columns, each compressed by itself: what stands together is alike, and a report reads what it needs.

A column is a Zstandard frame with a checksum. In it: the smallest value (u64), the width of the rest in bytes (u8), and
for each value what it is more than that, little-endian, all first bytes before all second ones and so on.
"""

from __future__ import annotations

import struct

import numpy as np
import zstandard
from numpy.typing import NDArray

from frida_rtetrack.errors import DamagedRecording
from frida_rtetrack.stream.events import EVENT_DTYPE, SIZE_BITS, EventBatch, Times, sizes, threads

COLUMNS = ("kind", "api", "socket", "thread", "size_bytes", "address", "stack", "label", "time_ns")
"""In a chunk; `time_ns` is told as the step from the event before, the first one's from the chunk's start."""

_HEAD = struct.Struct("<QB")
_LEVEL = 1
_WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


def pack(values: NDArray[np.unsignedinteger]) -> bytes:
    """The column of `values` (n,), n > 0."""
    wide = values.astype(np.uint64)
    least = int(wide.min())
    wide -= np.uint64(least)
    width = max((int(wide.max()).bit_length() + 7) // 8, 1)
    planes = np.ascontiguousarray(wide.view(np.uint8).reshape(-1, 8)[:, :width].T)
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(
        _HEAD.pack(least, width) + planes.tobytes()
    )


def unpack(column: bytes, count: int) -> NDArray[np.uint64]:
    """The `count` values of a column, (count,). Raises DamagedRecording."""
    try:
        if not 0 < zstandard.frame_content_size(column) <= _HEAD.size + 8 * count:
            raise DamagedRecording("A column of events is not as long as it says.")
        raw = zstandard.ZstdDecompressor().decompress(column)
    except zstandard.ZstdError:
        raise DamagedRecording("A column of events is damaged.") from None
    least, width = _HEAD.unpack_from(raw) if len(raw) >= _HEAD.size else (0, 0)
    if width not in _WIDTHS or len(raw) != _HEAD.size + width * count:
        raise DamagedRecording("A column of events is not as long as it says.")
    wide = np.zeros((count, 8), np.uint8)
    wide[:, :width] = np.frombuffer(raw, np.uint8, offset=_HEAD.size).reshape(width, count).T
    return wide.view(np.uint64).reshape(count) + np.uint64(least)


def columns_of(events: EventBatch, times: Times, start_ns: int) -> dict[str, bytes]:
    """The columns of `events` (n,), n > 0, which happened at `times` (n,), none of them before `start_ns`."""
    steps = np.diff(times, prepend=start_ns).astype(np.uint64)
    values = {
        "kind": events["kind"],
        "api": events["api"],
        "socket": events["socket"].view(np.uint8),
        "thread": threads(events),
        "size_bytes": sizes(events),
        "address": events["address"],
        "stack": events["stack"],
        "label": events["label"],
        "time_ns": steps,
    }
    return {name: pack(values[name]) for name in COLUMNS}


def events_of(columns: dict[str, bytes], count: int, start_ns: int) -> tuple[EventBatch, Times]:
    """What `columns_of` was given, but for what only the ring needs: commit and the bits of time. Raises DamagedRecording."""
    values = {name: unpack(columns[name], count) for name in COLUMNS}
    events = np.zeros(count, EVENT_DTYPE)
    for name in ("kind", "api", "address", "stack", "label"):
        events[name] = values[name]
    events["socket"] = values["socket"].astype(np.uint8).view(np.int8)
    events["size_and_thread"] = values["size_bytes"] | values["thread"] << np.uint64(SIZE_BITS)
    times: Times = np.cumsum(values["time_ns"], dtype=np.int64) + start_ns
    return events, times
