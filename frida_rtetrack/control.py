"""Control: what a session can be told, while it goes on. A third of `Host`, beside what it is asked (`questions.py`).

Nothing here begins or ends the tracking.
"""

from __future__ import annotations

import signal

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.session import Session
from frida_rtetrack.target.agentoptions import check_seconds, check_signal
from frida_rtetrack.target.group import TargetGroup
from frida_rtetrack.tracking.heap import HeapDifference
from frida_rtetrack.tracking.map import TrackingMap


class Control:
    """What `Host` hands on to the target and to the recording. It has no parts of its own: `Host` makes them."""

    tracking: TrackingMap
    paused: bool
    _group: TargetGroup
    _session: Session

    # ---- the target ----

    def resume(self) -> None:
        """Lets a program that was spawned with `resume=False` run."""
        gated = self._group.first.gated
        if gated is None:
            raise BadUsage("The program was attached to: it runs.", "`resume` is for Host.spawn(..., resume=False).")
        gated.resume()

    def end(self, patience_seconds: float = 5.0) -> None:
        """Ends the target, and what it executed: SIGTERM, and SIGKILL if it is still there after `patience_seconds`."""
        check_seconds(patience_seconds)
        self._group.end(patience_seconds)

    def interrupt(self) -> None:
        """Sends SIGINT to the target and to what it executed, as a terminal's Ctrl-C reaches all. Raises NotLive."""
        self._group.signal_all(signal.SIGINT)

    def kill(self) -> None:
        """Kills the target (SIGKILL), and what it executed. Raises NotLive where nothing is left of them."""
        self._group.signal_all(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Sends a signal to the target, or to what it executed if it is gone. Raises NotLive where nothing is left."""
        check_signal(number)
        self._group.signal_first(number)

    def let_run(self) -> None:
        """Lets the target, and what it executed, run if it is stopped: so it hears of a signal that was sent."""
        self._group.let_run()

    # ---- the tracking ----

    def baseline(self) -> int | None:
        """Takes what already lives in DPDK's heap into the tracking, which is complete from then on.

        Done by `attach`, by `resume_recording` and after a loss of events. Returns the number of blocks that the heap
        has, None where this DPDK cannot be asked: then the frees of unknown blocks are counted and never accused.
        """
        return self._session.heap.view.baseline()

    def verify(self) -> HeapDifference | None:
        """Compares the live set with DPDK's own list of busy blocks, at one moment, while the program runs.

        `verified` keeps the answer; the summary has only that of the end (Options.verify). None where this DPDK has no rte_malloc_dump_heaps. Raises NotLive.
        """
        return self._session.heap.view.verify()

    def pause(self) -> None:
        """Stops recording: the program runs at nearly its bare speed until `resume_recording`."""
        self._group.command_all("pause")
        self.paused = True

    def resume_recording(self) -> None:
        """Records again, after a fresh baseline: what was allocated and freed during the pause is set right."""
        with self._session.pump.lock:
            self.tracking.mark_incomplete()
        self._group.command_all("resume")
        self.paused = False
        self.baseline()
