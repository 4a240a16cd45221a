"""rtetrack-frida: tracks the memory that a program takes from DPDK's heap (rte_malloc), with Frida.

>>> from frida_rtetrack import Host
>>> with Host.spawn(["./app", "--no-huge", "--no-pci"]) as host:
...     host.wait()
...     for bad in host.bad_frees:
...         print(bad.kind, hex(bad.address))
"""

from frida_rtetrack.errors import RtetrackError
from frida_rtetrack.host import VERSION as __version__
from frida_rtetrack.host import Host
from frida_rtetrack.observer import Observer
from frida_rtetrack.options import LeakKind, Options
from frida_rtetrack.reports.stats import Stats
from frida_rtetrack.reports.summary import Summary
from frida_rtetrack.tracking.badfree import BadFreeReport
from frida_rtetrack.tracking.map import BadFreeKind, Block, TrackingMap

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
