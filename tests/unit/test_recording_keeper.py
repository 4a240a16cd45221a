"""A session's recordings: one at a time, begun whenever it is wished, and finished with what was found."""

from __future__ import annotations

from pathlib import Path

import pytest
from rig import Rig
from test_recording import ENDING, HEAP
from written import allocated, freed

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.recording.keeper import RecordingKeeper
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.replay import Replay


def keeper_of(rig: Rig) -> RecordingKeeper:
    return RecordingKeeper(
        rig.session.make_recorder,
        rig.session.pump,
        rig.heap.view,
        state=lambda: {"engine": "native", "lost": 7},
        keep_findings_in=lambda note: None,
        names=False,
        started=rig.start,
    )


def test_it_begins_in_the_middle_with_what_lives_then_and_says_what_is_so_at_the_end(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.write(allocated(HEAP, 64), allocated(HEAP + 64, 64))
    keeper = keeper_of(rig)
    keeper.begin_now(tmp_path / "recording", force=False)
    rig.write(freed(HEAP))
    rig.end()
    keeper.finish(ending=ENDING, verified=None)
    rig.written.close()
    with Recording(tmp_path / "recording") as recording:
        assert recording.about.lost == 7
        assert Replay(recording).run().heap.map.live()["address"].tolist() == [HEAP + 64]


def test_there_is_one_at_a_time_and_another_once_that_has_failed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    keeper = keeper_of(rig)
    keeper.finish(ending=ENDING, verified=None)  # of none: nothing
    keeper.begin_now(tmp_path / "first", force=False)
    with pytest.raises(BadUsage, match=r"being recorded in .*/first already"):
        keeper.begin_now(tmp_path / "second", force=False)
    assert not (tmp_path / "second").exists()
    assert keeper._recorder is not None
    keeper._recorder.failed = "the disk is full"
    with pytest.raises(BadUsage, match=r"There is a file .*first already"):
        keeper.begin_now(tmp_path / "first", force=False)
    keeper.begin_now(tmp_path / "second", force=False)
    rig.end()
    keeper.finish(ending=ENDING, verified=None)
    rig.written.close()
    with Recording(tmp_path / "second") as recording:
        assert recording.about.lost == 7
