"""How DPDK's free memory is cut up: read from outside, it is what DPDK itself says."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tracked import Process, Runner, eventually

from frida_rtetrack import Host
from frida_rtetrack.reachability.elements import HEADER_BYTES
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.reports.freespace import FreeSpace


def dpdk_says(process: Process) -> dict[str, int]:
    found = process.wait_for(r"^total (\d+) free (\d+) largest (\d+) pieces (\d+) busy (\d+)$")
    return dict(zip(("total", "free", "largest", "pieces", "busy"), map(int, found.groups()), strict=True))


def report(command: str, path: Path, *options: str) -> str:
    words = [sys.executable, "-m", "frida_rtetrack", command, *options, str(path)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def test_a_heap_that_is_cut_up_is_told_as_dpdk_has_it(runner: Runner) -> None:
    path = runner.folder / "run.rtrec"
    tracked = runner.spawn("fragmented", options=["-o", path])
    said = dpdk_says(tracked)
    tracked.wait_for("^ready$")
    with Host.attach(runner_target_of(runner)) as host:
        (heap,) = host.free_space().heaps
    eventually(lambda: 1 << 20 in failures(path))
    tracked.send_signal(signal.SIGTERM)
    tracked.wait()
    assert (heap.size_bytes, heap.free_bytes, heap.free, heap.busy) == (
        said["total"],
        said["free"],
        said["pieces"],
        said["busy"],
    )
    assert heap.largest_free_bytes == said["largest"] - HEADER_BYTES
    assert sum(size_bytes for _, _, size_bytes in heap.classes) == heap.free_bytes
    stats = json.loads(report("stats", path, "--json"))
    failed = next(space for space in stats["free_space"] if space["failed_bytes"] == 1 << 20)
    assert failed["heaps"][0]["free_bytes"] == said["free"]
    told = report("stats", path)
    assert "right after an allocation of 1.0 MiB had failed" in told
    assert re.search(r"the largest block that fits: \d\d\.\d KiB \(0\.1% of what is free\)", told)


def failures(path: Path) -> list[int | None]:
    """What had failed when the recording's session looked, as far as it is written."""
    with Recording(path) as recording:
        return [space.failed_bytes for space in recording.findings(FreeSpace)]


def runner_target_of(runner: Runner) -> int:
    """An untracked program of the same kind: one is looked at by one host at a time."""
    other = runner.start("fragmented")
    other.wait_for("^ready$")
    return other.pid


@pytest.mark.alone
def test_a_busy_heap_is_read_without_a_wrong_figure(runner: Runner) -> None:
    program = runner.start_load(2)
    whole = 0
    with Host.attach(program.pid) as host:
        sizes = set()
        for _ in range(30):
            space = host.free_space()
            whole += space.whole
            sizes |= {heap.size_bytes for heap in space.heaps}
    assert whole >= 15
    assert sizes == {64 << 20}
    program.stop()
