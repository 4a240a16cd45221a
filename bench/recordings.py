"""What a recording of ten million events takes, and every report on it: bytes an event, seconds, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import streams  # beside this file

from frida_rtetrack.recording.file import RecordingFile, create
from frida_rtetrack.recording.recorder import CHUNK_EVENTS
from frida_rtetrack.reports.summary import Start
from frida_rtetrack.stream.ring import BATCH_EVENTS, StackRecord

EVENTS = 10_000_000
LIVE = 1_000_000
COMMANDS = (
    *("summary", "table", "table --peak", "tree", "leaks", "stats", "diff --from 1"),
    *("table --temporary 10", "stats --type none --min-size 64"),
    *("flamegraph", "export --format pprof", "export --format csv"),
)


def figures() -> list[dict[str, object]]:
    """Random churn of a million live blocks, mixed sizes, a thousand stacks, sixteen threads: the worst there is to pack."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "churn.rtrec"
        events, seconds = write(path)
        rows.append(
            {
                "what": f"recording of {events:,} events, random churn of {LIVE:,} blocks",
                "bytes_an_event": round(path.stat().st_size / events, 2),
                "written_events_a_second": int(events / seconds),
            }
        )
        rows += [report(command, path) for command in COMMANDS]
    return rows


def write(path: Path) -> tuple[int, float]:
    """Writes the recording; how many events, and in how many seconds of CPU time."""
    start = Start.now()
    create(path, force=False)
    file = RecordingFile(path)
    file.about(started=start, begun_complete=True, ended=True)
    for stack in range(1, 1000):
        file.stack(stack, StackRecord((0x1000 + stack, 0x2000), 0, 0, 0))  # type: ignore[arg-type]
    filling, batches = streams.churn(LIVE, EVENTS // BATCH_EVENTS)
    random = np.random.default_rng(1)
    count, seconds, now = 0, 0.0, start.monotonic_ns
    for batch in (*filling, *batches):
        for at in range(0, len(batch), CHUNK_EVENTS):
            events = batch[at : at + CHUNK_EVENTS]
            times = now + np.cumsum(random.integers(0, 200, len(events)))
            begun = time.thread_time()
            file.chunk(count, events, times)
            seconds += time.thread_time() - begun
            count, now = count + len(events), int(times[-1])
    file.about(events=count)
    file.commit()
    file.close()
    return count, seconds


def report(command: str, path: Path) -> dict[str, object]:
    """Seconds and the most memory of one report."""
    name, *options = command.split()
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "frida_rtetrack", name, *options, str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    return {
        "what": f"{command} of {EVENTS:,} events",
        "seconds": round(time.monotonic() - begun, 2),
        "memory_mib": usage.ru_maxrss // 1024,
        "exit_status": os.waitstatus_to_exitcode(status),
    }
