"""Where the command begins: with nothing but the standard library, to say in a sentence what keeps the rest from loading.

Address space is looked at first: where it runs out while Frida is loaded, a library of Frida's ends the process.
"""

from __future__ import annotations

import importlib
import resource
import sys
from collections.abc import Callable
from typing import cast

from frida_rtetrack.errors import OutOfResources, RtetrackError
from frida_rtetrack.reporters import streams

EXIT_TOOL_FAILED = 125
"""As in `cli`."""
LOADED_MIB = 2000
"""What Frida, numpy and symbolic reserve while they are loaded; they use a twentieth of it."""
TRACKING_MIB = 4000
"""What is enough with the usual --buffer, for the program, too, which is under the same limit."""


def main() -> None:
    """The command `rtetrack-frida`."""
    streams.open_closed_streams()
    try:
        _check_address_space()
        command = _load()
    except RtetrackError as error:
        streams.write(sys.stderr, f"rtetrack-frida: {error} {error.hint}\n")
        sys.exit(EXIT_TOOL_FAILED)
    command()


def _check_address_space() -> None:
    """Raises OutOfResources where the libraries cannot be loaded, or only by chance."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY and most < LOADED_MIB << 20:
        raise OutOfResources(
            f"rtetrack-frida may have {most >> 20:,} MiB of address space (RLIMIT_AS); its libraries need {LOADED_MIB:,} to "
            "be loaded.",
            f"Start it with more: `ulimit -v {TRACKING_MIB << 10}`, or `ulimit -v unlimited`.",
        )


def _load() -> Callable[[], None]:
    """The command, with all its libraries. Raises RtetrackError."""
    try:
        return cast(Callable[[], None], importlib.import_module("frida_rtetrack.commands.cli").main)
    except (
        MemoryError,
        ImportError,
        OSError,
        SystemError,
    ) as error:  # SystemError: of memory that a library did not get
        why = str(error).partition("\n")[0] or type(error).__name__
        raise OutOfResources(
            f"rtetrack-frida's libraries cannot be loaded: {why}.",
            "Is one missing (`pip check`), or is a limit too low (`ulimit -a`)?",
        ) from error
