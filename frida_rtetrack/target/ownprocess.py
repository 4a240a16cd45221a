"""Programs of this package that run as processes of their own: what traces with ptrace(2) must, since all of a tracer's
calls come from one thread, and Frida reaps what its own process traces.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Without the package's own __init__, which would load Frida and numpy: it is to begin at once.
_BEGIN = """
import importlib, signal, sys, types
for number in (signal.SIGINT, signal.SIGHUP):  # of a terminal, to all in it: a thread of a program may be in our hands
    signal.signal(number, signal.SIG_IGN)
for name, path in (("frida_rtetrack", sys.argv[1]), ("frida_rtetrack.target", sys.argv[1] + "/target")):
    module = types.ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
main = importlib.import_module(sys.argv[2]).main
del sys.argv[1:3]
main()
"""


def command(module: str, *arguments: object) -> list[str]:
    """The command line that runs `module` (its full name), which has a `main`, with `arguments`."""
    package = Path(__file__).parents[1]
    return [sys.executable, "-I", "-S", "-c", _BEGIN, str(package), module, *map(str, arguments)]
