"""Live blocks as a recording keeps them: in order of their addresses, a column for each field."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.errors import DamagedRecording
from frida_rtetrack.recording.columns import pack, unpack
from frida_rtetrack.tracking.map import BLOCK_DTYPE

MOST_ROWS = 1 << 26
Rows = NDArray[np.void]
"""BLOCK_DTYPE (n,)."""


def pack_numbers(values: NDArray[np.uint64]) -> bytes:
    """How many of `values` (n,) there are, and their column."""
    return msgspec.msgpack.encode((values.size, pack(values) if values.size else b""))


def unpack_numbers(raw: Any) -> NDArray[np.uint64]:
    """What `pack_numbers` was given. Raises DamagedRecording."""
    try:
        count, column = msgspec.msgpack.decode(raw, type=tuple[int, bytes])
    except (msgspec.DecodeError, TypeError):
        raise DamagedRecording("Numbers that cannot be read.") from None
    if not 0 <= count <= MOST_ROWS:
        raise DamagedRecording("More numbers than there can be.")
    return unpack(column, count) if count else np.empty(0, np.uint64)


def pack_rows(rows: Rows) -> bytes:
    """Blocks in order of their addresses, a column for each field (docs/recording-format.md)."""
    rows = rows[np.argsort(rows["address"], kind="stable")]
    columns = {name: _column(rows[name]) for name in rows.dtype.names or ()}
    columns["address"] = np.diff(columns["address"], prepend=np.uint64(0))
    return msgspec.msgpack.encode({name: pack_numbers(column) for name, column in columns.items()})


def unpack_rows(raw: Any) -> Rows:
    """What `pack_rows` was given, in order of addresses. Raises DamagedRecording."""
    try:
        columns = {
            name: unpack_numbers(column) for name, column in msgspec.msgpack.decode(raw, type=dict[str, bytes]).items()
        }
        columns["address"] = np.cumsum(columns["address"], dtype=np.uint64)
        rows = np.zeros(columns["address"].size, BLOCK_DTYPE)
        for name in rows.dtype.names or ():
            kind = rows.dtype[name]
            column = columns[name].astype(f"<u{kind.itemsize}")
            rows[name] = column != 0 if kind == np.bool_ else column.view(kind)
        return rows
    except (msgspec.DecodeError, KeyError, ValueError, TypeError, MemoryError):
        raise DamagedRecording("Blocks that cannot be read.") from None


def _column(values: NDArray[Any]) -> NDArray[np.uint64]:
    """Their bytes as numbers."""
    return np.ascontiguousarray(values).view(f"<u{values.itemsize}").astype(np.uint64)
