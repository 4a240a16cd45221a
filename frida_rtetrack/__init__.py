"""rtetrack-frida: tracks the memory that a program takes from DPDK's heap (rte_malloc), with Frida.

>>> from frida_rtetrack import Host
>>> with Host.spawn(["./app", "--no-huge", "--no-pci"]) as host:
...     host.wait()
...     for bad in host.bad_frees:
...         print(bad.kind, hex(bad.address))

What is offered here is loaded when it is asked for: Frida and numpy take 2 GB of address space, and the command must be
able to say that they cannot have it.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frida_rtetrack.errors import RtetrackError
    from frida_rtetrack.host import VERSION as __version__
    from frida_rtetrack.host import Host
    from frida_rtetrack.observer import Observer
    from frida_rtetrack.options import LeakKind, Options
    from frida_rtetrack.reports.stats import Stats
    from frida_rtetrack.reports.summary import Summary
    from frida_rtetrack.tracking.badfree import BadFreeReport
    from frida_rtetrack.tracking.map import BadFreeKind, Block, TrackingMap
else:
    _HOMES = {
        "BadFreeKind": "tracking.map",
        "BadFreeReport": "tracking.badfree",
        "Block": "tracking.map",
        "Host": "host",
        "LeakKind": "options",
        "Observer": "observer",
        "Options": "options",
        "RtetrackError": "errors",
        "Stats": "reports.stats",
        "Summary": "reports.summary",
        "TrackingMap": "tracking.map",
        "__version__": "host",
    }

    def __getattr__(name):
        """What `__all__` names, and this package's modules (PEP 562)."""
        if name in _HOMES:
            module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
            found = module.VERSION if name == "__version__" else getattr(module, name)
        elif not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            found = importlib.import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__():
        """As if it had all been loaded."""
        return sorted({*globals(), *__all__})


__all__ = [
    "BadFreeKind",
    "BadFreeReport",
    "Block",
    "Host",
    "LeakKind",
    "Observer",
    "Options",
    "RtetrackError",
    "Stats",
    "Summary",
    "TrackingMap",
    "__version__",
]
