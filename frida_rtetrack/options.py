"""Options: how to track. What the command line offers, with the same defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEFAULT_DUMP_PATH = Path("/tmp/rteMallocTrackMapDump.txt")
ENGINES = ("auto", "native", "portable")
MAX_FRAMES = 256
MAX_BUFFER_MIB = 16384


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
