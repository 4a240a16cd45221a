"""What an agent is told when it starts: the user's options, and what of the session memory it must know."""

from __future__ import annotations

import platform
import signal
from typing import Any

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.options import ENGINES, MAX_BUFFER_MIB, MAX_FRAMES, LeakKind, Options
from frida_rtetrack.stream.ring import SessionMemory


def check_options(options: Options) -> None:
    """Raises BadUsage for options that no agent can follow."""
    if options.engine not in ENGINES:
        raise BadUsage(f"There is no engine {options.engine}.", f"These are: {', '.join(ENGINES)}.")
    if not 1 <= options.max_frames <= MAX_FRAMES:
        raise BadUsage(f"A stack cannot have {options.max_frames} frames at the most.", f"Give 1 to {MAX_FRAMES}.")
    if not 1 <= options.buffer_mib <= MAX_BUFFER_MIB:
        raise BadUsage(f"The ring cannot have {options.buffer_mib} MiB.", f"Give 1 to {MAX_BUFFER_MIB}.")


def chosen_engine(options: Options) -> str:
    """The engine that `options` mean on this machine. Raises BadUsage."""
    native_here = platform.machine() == "x86_64"
    if options.engine == "native" and not native_here:
        raise BadUsage("The native engine is for x86-64.", "Use --engine portable.")
    if options.engine == "auto":
        return "native" if native_here else "portable"
    return options.engine


def agent_options(options: Options, memory: SessionMemory, symbols: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The argument of the agent's `start`. `symbols`: where functions are that it cannot find by itself."""
    return {
        "engine": chosen_engine(options),
        "library": options.library,
        "maxFrames": options.max_frames,
        "allocationBacktrace": options.backtrace,
        "freeBacktrace": options.backtrace and options.free_backtrace,
        "symbols": symbols,
        "hookWays": options.hook_ways,
        "verify": options.verify,
        "holdEnd": LeakKind.LOST in options.leak_check,
        "followFork": options.follow_fork,
        "signal": int(signal.SIGRTMIN),
        "sessionBytes": memory.counter("total_bytes"),
        "populateBytes": memory.counter("stacks_offset"),
    }
