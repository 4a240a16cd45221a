"""The figures of a moment: what `stats` shows, and a script may ask for again and again."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stats:
    """A moment's figures. Bytes and events; rates are per second since the figures were last asked for."""

    engine: str
    hooks: tuple[dict[str, str], ...]
    seconds: float
    live_blocks: int
    live_bytes: int
    peak_blocks: int
    peak_bytes: int
    allocations: int
    frees: int
    resizes: int
    failed: int
    allocated_bytes: int
    allocations_per_second: float
    frees_per_second: float
    by_type: tuple[tuple[str, int, int], ...]
    """(type, blocks, bytes), most bytes first."""
    by_socket: tuple[tuple[int, int, int], ...]
    """(socket asked for, -1 any; blocks, bytes)."""
    lost: int
    bad_frees: int
    paused: bool
    recording: bool
    memzones: tuple[int, int] = (0, 0)
    """Live memzones among the live blocks, and their bytes."""
    ring_waits: int = 0
    cut_stacks: dict[str, int] = field(default_factory=dict)
