"""The recording of a session: the one that is made from its start on, or one that is asked for while it goes on."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.recording.findings import Finding
from frida_rtetrack.recording.recorder import Recorder
from frida_rtetrack.stream.pump import Pump
from frida_rtetrack.tracking.heapview import HeapView


class RecordingKeeper:
    """Begins and finishes a session's recordings, one at a time."""

    def __init__(
        self,
        make: Callable[[Path, bool], Recorder],
        pump: Pump,
        view: HeapView,
        *,
        state: Callable[[], dict[str, Any]],
        keep_findings_in: Callable[[Callable[[Finding], None]], None],
        names: bool,
        **about: Any,
    ) -> None:
        """Of the session that `make`, `pump` and `view` are of. `state`: what is said of the tracking itself; `about`: of the session.

        `keep_findings_in`: is given who takes down what is found. `names`: whether the stacks' names are written too.
        """
        self._make, self._pump, self._view = make, pump, view
        self._state, self._keep_findings_in = state, keep_findings_in
        self._names, self._about = names, about
        self._recorder: Recorder | None = None

    def begin(self, recorder: Recorder) -> None:
        """Has `recorder`, which the pump knows, write from the session's start on."""
        self._keep_findings_in(recorder.note)
        recorder.begin(self._state, names=self._names, host=platform.node(), **self._about)
        self._recorder = recorder

    def begin_now(self, path: Path, *, force: bool) -> None:
        """Records from here on, into a new file at `path`; with `force` over a recording that is there. Raises BadUsage."""
        if self._recorder is not None and self._recorder.failed is None:
            raise BadUsage(
                f"The session is being recorded in {self._recorder.path} already.", "One recording at a time."
            )
        recorder = self._make(path, force)
        with self._view.undisturbed(), self._pump.lock:
            self.begin(recorder)
            self._pump.subscribe(recorder)

    def finish(self, **found: Any) -> None:
        """At the end of the session, with what Recorder.finish wants to know."""
        if self._recorder is not None:
            self._recorder.finish(names=self._names, **found, **self._state())
