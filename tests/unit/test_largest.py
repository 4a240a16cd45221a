"""A recording that is limited in size: it ends at a whole second, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rig import Rig
from test_recording import HEAP, recorded, some_events
from written import PATIENCE_SECONDS, allocated

from frida_rtetrack.commands.cli import cli
from frida_rtetrack.errors import BadUsage
from frida_rtetrack.host import Host, Options
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.replay import Replay
from frida_rtetrack.stream.events import SIZE_BITS, Kind

SECOND = 1_000_000_000
LIMIT = 1 << 20


def filled(tmp_path: Path, **options: Any) -> tuple[Rig, Path]:
    """A session that writes 5,000 random events a second, far more than the limit."""
    path = tmp_path / "run.rtrec"
    rig = Rig(tmp_path, path, record_max_bytes=LIMIT, **options)
    recorder = rig.session.recorder
    assert recorder is not None
    for number in range(20):
        events, _ = some_events(5_000, number)
        events["kind"], events["stack"], events["label"] = Kind.ALLOCATED, 0, 0
        events["size_and_thread"] = events["size_and_thread"] & np.uint64((1 << SIZE_BITS) - 1) | np.uint64(
            1 << SIZE_BITS
        )
        times = (
            rig.start.monotonic_ns + number * SECOND + np.sort(np.random.default_rng(number).integers(0, SECOND, 5_000))
        )
        recorder.on_events(events, 0, times)
        recorder._seal()
        recorder._committed_at = 0.0  # each second is committed
    recorder._queue.put(None)
    recorder._thread.join(PATIENCE_SECONDS)
    return rig, path


def test_it_ends_at_a_whole_second_below_its_size_and_says_so(tmp_path: Path) -> None:
    rig, path = filled(tmp_path)
    recorded(rig)
    assert path.stat().st_size <= LIMIT
    assert [text for text in rig.told.problems if "has reached --max-size" in text]
    with Recording(path) as recording:
        until_ns = recording.about.until_ns
        assert until_ns is not None
        assert (until_ns - rig.start.monotonic_ns) % SECOND == 0
        replay = Replay(recording).run()
        assert recording.damage is None
        assert replay.now_ns == until_ns
        last_ns = max(int(times[-1]) for _, _, times in recording.events())
        assert until_ns - SECOND / 100 < last_ns <= until_ns
        seconds = (until_ns - rig.start.monotonic_ns) // SECOND
        assert replay.heap.map.events == 5_000 * seconds
    result = CliRunner().invoke(cli, ["table", str(path)])
    assert result.exit_code == 0
    assert f"ends {seconds}.0 s after the start, before the session did: it had reached --max-size" in result.stderr


def test_an_aggregated_one_ends_too(tmp_path: Path) -> None:
    path = tmp_path / "run.rtrec"
    rig = Rig(tmp_path, path, record_max_bytes=LIMIT, record_aggregate_seconds=60.0)
    recorder = rig.session.recorder
    assert recorder is not None
    assert recorder._aggregate is not None
    rig.write(allocated(HEAP, 300))
    batch = np.array([allocated(HEAP + 64 * n, 1 + n % 999) for n in range(1, 20_000)])
    batch["label"] = np.random.default_rng(1).integers(0, 1 << 20, batch.size)
    batch["socket"] = np.random.default_rng(2).integers(0, 7, batch.size)
    rig.written.write_batch(batch)
    rig.sync()
    for _ in range(30):
        recorder._aggregate._next = 0.0
        recorder.on_round()
    recorded(rig)
    assert path.stat().st_size <= LIMIT
    with Recording(path) as recording:
        assert Replay(recording).run().heap.map.live_bytes >= 0
        assert recording.damage is None


def test_a_size_that_none_can_keep_to_is_refused() -> None:
    with pytest.raises(BadUsage, match="cannot keep to 1,000 bytes"):
        Host.spawn(["true"], Options(record_max_bytes=1000))
