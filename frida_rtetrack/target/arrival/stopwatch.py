"""Whether a program is stopped (SIGSTOP, Ctrl-Z) in the moment in which Frida comes into it by the stand-in.

It stays stopped, and whoever stopped it lets it run: nobody here can know whether that was done meanwhile, so nothing
here stops or continues a program. What Frida would do to it: `fridacalls`.
"""

from __future__ import annotations

import ctypes
import signal
import threading
import time

from frida_rtetrack.errors import ArrivalRefused, NoSuchProcess
from frida_rtetrack.target import process

LOOK_S = 0.003
PATIENCE_S = 2.5
"""For whoever stopped the program to let it run again; Frida has some five."""
BECOMES_SEEN_S = 0.3
"""A main thread that waits for a processor is told to stop, but has not."""
_SYS_TGKILL = 234


class StopWatch:
    """Watches one program from its beginning until `finish`."""

    def __init__(self, pid: int, tid: int) -> None:
        """Begins. `tid`: the stand-in. Raises ArrivalRefused where the program is stopped now."""
        if is_stopped(pid):
            raise stopped_meanwhile(pid)
        self.seen = False
        """It was stopped meanwhile."""
        self._pid, self._tid = pid, tid
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="stop watch", daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        since: float | None = None
        while not self._over.wait(LOOK_S):
            if not is_stopped(self._pid):
                since = None
                continue
            self.seen = True
            since = time.monotonic() if since is None else since
            if time.monotonic() - since > PATIENCE_S:
                self._keep_memory_mapped()
                return

    def _keep_memory_mapped(self) -> None:
        """Has the call fail by which Frida, when it gives up, would unmap the memory in which its stopped threads will go on.

        That call ends with the SIGSEGV, as if it had crashed. Where it does not come to that, the stand-in's handler
        ignores it (standin.S).
        """
        ctypes.CDLL(None).syscall(_SYS_TGKILL, self._pid, self._tid, int(signal.SIGSEGV))

    def finish(self, *, failed: bool = False) -> None:
        """Frida has come, or has `failed` to: a stop that was why may take a moment to be seen."""
        deadline = time.monotonic() + BECOMES_SEEN_S
        while failed and not self.seen and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        self._over.set()
        self._watcher.join()


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped; False where it is gone."""
    try:
        return process.state(pid) == "T"
    except NoSuchProcess:
        return False


def stopped_meanwhile(pid: int) -> ArrivalRefused:
    """What a user is told."""
    return ArrivalRefused(
        f"Process {pid} was stopped while it was being attached to: it was left as it was.",
        f"Let it run with `kill -CONT {pid}` and try again.",
    )
