"""Real sessions recorded: what a replay says is what the session said, and a killed writer's recording is read."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from tracked import Runner

from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.replay import Replay

SCRIPT = """
import json, sys, time
from pathlib import Path
from frida_rtetrack import Host, Options

pid, path, argv = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
options = Options(record=path, verify=True, follow_fork=True, dump_path=path.with_suffix(".csv"))
with Host.attach(int(pid), options) if pid != "-" else Host.spawn(argv, options) as host:
    if pid == "-":
        host.wait_for_exit()
    else:
        time.sleep(2)
        host.pause()
        time.sleep(0.3)
        host.resume_recording()
        time.sleep(1)
        host.detach()
    path.with_suffix(".json").write_text(json.dumps({"summary": host.summary().as_json(), "live": sorted(map(repr, host.tracking.live().tolist()))}))
"""

EAL = ("--no-huge", "-m", "512", "--no-pci", "--no-telemetry", "--no-shconf", "-l", "0-1")
PROGRAMS = (
    ("demo",),
    ("badfrees",),
    ("realloc",),
    ("memzones",),
    ("forker", "exit"),
    ("forker", "daemon"),
    ("dpdk-test", *EAL, "hash_autotest"),
    ("dpdk-testpmd", *EAL, "--vdev=net_null0", "--vdev=net_null1", "--", "--no-mlockall", "--total-num-mbufs=2048"),
)


@pytest.mark.parametrize("argv", PROGRAMS, ids=lambda argv: " ".join((argv[0], argv[-1])))
def test_a_replay_says_what_the_session_said(runner: Runner, argv: tuple[str, ...]) -> None:
    script, path = runner.folder / "script.py", runner.folder / "recording"
    script.write_text(SCRIPT)
    host = runner.python(script, "-", path, runner.program(argv[0]), *argv[1:])
    host.finish()
    check(path)


@pytest.mark.alone
def test_what_was_attached_to_replays_with_its_baseline_and_its_pause(runner: Runner) -> None:
    script, path = runner.folder / "script.py", runner.folder / "recording"
    script.write_text(SCRIPT)
    program = runner.start_load(2)
    host = runner.python(script, program.pid, path)
    assert host.finish() == 0, host.stderr
    check(path)
    program.stop()


def check(path: Path) -> None:
    said = json.loads(path.with_suffix(".json").read_text())
    with Recording(path) as recording:
        replay = Replay(recording).run()
        assert recording.about.ended
        assert recording.damage is None
        assert json.loads(json.dumps(replay.summary().as_json())) == said["summary"]
        assert sorted(map(repr, replay.live().tolist())) == said["live"]


def test_the_writer_is_killed_and_all_but_the_last_second_is_there(runner: Runner) -> None:
    path = runner.folder / "recording"
    tracked = runner.spawn("load", 1, 8, 60, runner.folder / "pulse", options=["-o", path])
    tracked.wait_for("tracking", "stderr")
    time.sleep(4)
    killed_ns = time.monotonic_ns()
    tracked.send_signal(signal.SIGKILL)
    tracked.wait()
    with Recording(path) as recording:
        replay = Replay(recording).run()
        assert not recording.about.ended
        assert replay.heap.map.events > 1000
        assert killed_ns - replay.now_ns < 3e9
        assert any(frame.function == "start_eal" for site in replay.summary().call_sites for frame in site.stack.frames)  # type: ignore[union-attr]
