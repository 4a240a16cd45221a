"""Findings that no replay of the events makes again, as a recording keeps them: MessagePack."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np

from frida_rtetrack.errors import DamagedRecording
from frida_rtetrack.recording.blocks import pack_rows, unpack_rows
from frida_rtetrack.reports.freespace import FreeSpace
from frida_rtetrack.reports.lost import LostFinding

Finding = LostFinding | FreeSpace
"""Any of them."""
KINDS: dict[type[Finding], str] = {LostFinding: "lost", FreeSpace: "free space"}
"""What the table `findings` calls each."""

Some = TypeVar("Some")
_MOST_SECONDS = 1e9


def kind_of(kind: type[Any]) -> str:
    """What the table calls it."""
    return KINDS[kind]


def pack(finding: Finding) -> bytes:
    """For the column `finding`: the fields by name, rows of blocks as blocks.pack_rows has them."""
    return msgspec.msgpack.encode(finding, enc_hook=_as_bytes)


def unpack(raw: bytes, kind: type[Some]) -> Some:
    """What `pack` was given. Raises DamagedRecording."""
    try:
        found = msgspec.msgpack.decode(raw, type=kind, dec_hook=_as_rows)
        if isinstance(found, LostFinding) and not 0 <= found.seconds + found.longest_stop_s < _MOST_SECONDS:
            raise ValueError("it took no such time")
        return found
    except (msgspec.DecodeError, ValueError, TypeError) as error:
        raise DamagedRecording(f"A finding cannot be read: {error}") from None


def _as_bytes(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return pack_rows(value)
    raise NotImplementedError


def _as_rows(kind: Any, value: Any) -> Any:
    """Rows of blocks are the only fields that are not MessagePack's own."""
    return unpack_rows(value)
