"""What an agent is told when it starts: the user's options, and what of the session memory it must know."""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.options import ENGINES, MAX_BUFFER_MIB, MAX_FRAMES, LeakKind, Options
from frida_rtetrack.stream.ring import SessionMemory

MOST_SECONDS = 1e9
_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("engine",), (str,)),
    **dict.fromkeys(("max_frames", "buffer_mib"), (int,)),
    **dict.fromkeys(("backtrace", "free_backtrace", "dump_on_bad_free", "follow_fork"), (bool,)),
    **dict.fromkeys(("record_over", "record_names", "verify"), (bool,)),
    **dict.fromkeys(("symbols", "hook_ways"), (tuple, list)),
    **dict.fromkeys(("record_aggregate_seconds",), (int, float, _NONE)),
    **dict.fromkeys(("record_max_bytes",), (int, _NONE)),
    **dict.fromkeys(("leak_check",), (frozenset, set, tuple, list)),
    **{"library": (str, _NONE), "dump_path": (str, os.PathLike), "record": (str, os.PathLike, _NONE)},
}


def check_options(options: Options) -> None:
    """Raises BadUsage for options that no agent can follow."""
    check_is("options", options, Options)
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
    checked_list("leak checks", options.leak_check, LeakKind)
    path_of(options.dump_path)
    if options.record is not None:
        path_of(options.record)
    if options.record_aggregate_seconds is not None:
        check_seconds(options.record_aggregate_seconds)
    if options.engine not in ENGINES:
        raise BadUsage(f"There is no engine {options.engine}.", f"These are: {', '.join(ENGINES)}.")
    if not 1 <= options.max_frames <= MAX_FRAMES:
        raise BadUsage(f"A stack cannot have {options.max_frames} frames at the most.", f"Give 1 to {MAX_FRAMES}.")
    if not 1 <= options.buffer_mib <= MAX_BUFFER_MIB:
        raise BadUsage(f"The ring cannot have {options.buffer_mib} MiB.", f"Give 1 to {MAX_BUFFER_MIB}.")


def check_address(address: int) -> None:
    """Raises BadUsage for what is no address."""
    number = isinstance(address, int) and not isinstance(address, bool)
    if not number or not 0 <= address < 1 << 64:
        raise BadUsage(f"{address:#x} is no address." if number else f"{address!r} is no address.", "An address has 64 bits.")  # fmt: skip


def path_of(path: str | os.PathLike[str]) -> Path:
    """The path. Raises BadUsage for what is none."""
    try:
        found = Path(path)
    except TypeError:
        found = Path("\0")
    if "\0" in str(found):
        raise BadUsage(f"{path!r} is no path of a file.")
    return found


def check_seconds(seconds: float) -> None:
    """Raises BadUsage for what is no time to wait. One that is over already is."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not -MOST_SECONDS < seconds < MOST_SECONDS:
        raise BadUsage(f"{seconds!r} is no number of seconds to wait for.", "For example: 2.5.")


def check_signal(number: int) -> None:
    """Raises BadUsage for what is no signal's number."""
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= signal.SIGRTMAX:
        raise BadUsage(f"{number!r} is no signal.", f"It is a number, 1 to {int(signal.SIGRTMAX)}: signal.SIGTERM.")


def check_is(what: str, value: object, kind: type) -> None:
    """Raises BadUsage where `value` is none of `kind`."""
    if not isinstance(value, kind):
        raise BadUsage(f"{value!r} is no {what}.", f"It is: {kind.__name__}.")


def checked_list(what: str, values: Any, *kinds: type) -> list[Any]:
    """The values. Raises BadUsage where that is no list, or has something in it of none of `kinds`."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence | Set):
        raise BadUsage(f"{values!r} is no list of {what}.", "It is a list, if of one.")
    for value in values:
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise BadUsage(f"{value!r} is none of {what}.", f"It is: {' or '.join(each.__name__ for each in kinds)}.")
    return list(values)


def check_terminal(descriptor: int | None) -> None:
    """Raises BadUsage for what is no descriptor of a terminal; None is none."""
    if descriptor is not None and not (isinstance(descriptor, int) and descriptor >= 0 and os.isatty(descriptor)):
        raise BadUsage(f"{descriptor} is no descriptor of a terminal.", "os.openpty() makes one.")


def check_top(count: int, by: str) -> None:
    """Raises BadUsage for an order, or a number, of call sites that there cannot be."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1 or by not in ("bytes", "blocks", "oldest"):
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
