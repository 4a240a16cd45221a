"""What an agent is told when it starts: the user's options, and what of the session memory it must know."""

from __future__ import annotations

import os
import platform
import signal
from pathlib import Path
from typing import Any

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.options import ENGINES, MAX_BUFFER_MIB, MAX_FRAMES, LeakKind, Options
from frida_rtetrack.stream.ring import SessionMemory

_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("engine",), (str,)),
    **dict.fromkeys(("max_frames", "buffer_mib"), (int,)),
    **dict.fromkeys(("backtrace", "free_backtrace", "dump_on_bad_free", "follow_fork"), (bool,)),
    **dict.fromkeys(("record_over", "record_names", "verify"), (bool,)),
    **dict.fromkeys(("symbols", "hook_ways"), (tuple, list)),
    **{"library": (str, _NONE), "dump_path": (str, os.PathLike), "record": (str, os.PathLike, _NONE)},
}


def check_options(options: Options) -> None:
    """Raises BadUsage for options that no agent can follow."""
    for name, kinds in _KINDS.items():
        value = getattr(options, name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise BadUsage(
                f"The option {name} cannot be {value!r}.", f"It is: {' or '.join(each.__name__ for each in kinds)}."
            )
    if not all(isinstance(each, str) for each in options.symbols):
        raise BadUsage("The option symbols is a tuple of texts.", 'For example: ("rte_free=app+0x1234",).')
    if not set(options.hook_ways) <= {"near", "far", "attach"}:
        raise BadUsage(f"There is no way to hook a function among {options.hook_ways}.", "Ways: near, far, attach.")
    if options.engine not in ENGINES:
        raise BadUsage(f"There is no engine {options.engine}.", f"These are: {', '.join(ENGINES)}.")
    if not 1 <= options.max_frames <= MAX_FRAMES:
        raise BadUsage(f"A stack cannot have {options.max_frames} frames at the most.", f"Give 1 to {MAX_FRAMES}.")
    if not 1 <= options.buffer_mib <= MAX_BUFFER_MIB:
        raise BadUsage(f"The ring cannot have {options.buffer_mib} MiB.", f"Give 1 to {MAX_BUFFER_MIB}.")


def check_address(address: int) -> None:
    """Raises BadUsage for what is no address."""
    if not isinstance(address, int) or not 0 <= address < 1 << 64:
        raise BadUsage(f"{address:#x} is no address." if isinstance(address, int) else f"{address!r} is no address.", "An address has 64 bits.")  # fmt: skip


def path_of(path: str | os.PathLike[str]) -> Path:
    """The path. Raises BadUsage for what is none."""
    try:
        return Path(path)
    except TypeError:
        raise BadUsage(f"{path!r} is no path of a file.") from None


def check_terminal(descriptor: int | None) -> None:
    """Raises BadUsage for what is no descriptor of a terminal; None is none."""
    if descriptor is not None and not (isinstance(descriptor, int) and descriptor >= 0 and os.isatty(descriptor)):
        raise BadUsage(f"{descriptor} is no descriptor of a terminal.", "os.openpty() makes one.")


def check_top(count: int, by: str) -> None:
    """Raises BadUsage for an order, or a number, of call sites that there cannot be."""
    if not isinstance(count, int) or count < 1 or by not in ("bytes", "blocks", "oldest"):
        raise BadUsage(f"There are no {count} call sites by {by}.", "Ask for 1 or more, by bytes, blocks or oldest.")


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
