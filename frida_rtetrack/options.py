"""Options: how to track. What the command line offers, with the same defaults."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

DEFAULT_DUMP_PATH = Path("/tmp/rteMallocTrackMapDump.txt")
ENGINES = ("auto", "native", "portable")
MAX_FRAMES = 256
MAX_BUFFER_MIB = 16384


class LeakKind(StrEnum):
    """What a leak check counts as leaked."""

    LOST = "lost"
    """What nothing points to when the program ends, calls rte_eal_cleanup, or is let go."""
    GROWING = "growing"
    """Call sites whose live blocks only increase over the run."""
    ALL = "all"
    """What is live when the program calls rte_eal_cleanup, EAL's own left out."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to track. The command line's options, with their defaults."""

    engine: str = "auto"
    library: str | None = None
    """The module with DPDK in it; None: whichever defines the functions."""
    symbols: tuple[str, ...] = ()
    """FUNCTION=MODULE+0xOFFSET, for a stripped program with DPDK linked in."""
    backtrace: bool = True
    free_backtrace: bool = True
    max_frames: int = 64
    buffer_mib: int = 64
    """Size of the event ring."""
    dump_path: Path = DEFAULT_DUMP_PATH
    dump_on_bad_free: bool = True
    hook_ways: tuple[str, ...] = ("near", "far", "attach")
    """How the native engine may redirect a function, best first; for tests of each way."""
    follow_fork: bool = False
    """Track the children that the program forks, too."""
    record: Path | None = None
    """Where to record the session."""
    record_over: bool = False
    """A file that is there is overwritten by the recording."""
    record_names: bool = True
    """Look up how all stacks read when the recording ends; if not, its reader does, from the files at hand there."""
    record_aggregate_seconds: float | None = None
    """Record no events, but what each call site held at a moment each so many seconds, and what is live at the end."""
    record_max_bytes: int | None = None
    """The recording ends before its file is larger; the tracking goes on."""
    verify: bool = False
    """Compare with DPDK's own heap at the end: when the program exits, cleans up EAL, or is let go."""
    leak_check: frozenset[LeakKind] = frozenset()
    """What is looked for at the end, for `Host.summary` and the gate. For LOST the thread that ends the program, or calls
    rte_eal_cleanup, waits until its memory has been searched."""
