"""Who points to a block of a real program, and what nobody points to: asked by a script and at the prompt."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from click.testing import CliRunner
from restless import Restless
from tracked import Runner

from frida_rtetrack import Host, Options
from frida_rtetrack.commands.cli import cli
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.replay import Replay
from frida_rtetrack.reporters import text
from frida_rtetrack.reports import lost
from frida_rtetrack.reports.lost import LostFinding
from frida_rtetrack.target import registers

SCRIPT = """
import json, sys, time
from pathlib import Path
from frida_rtetrack import Host, Options

def sites(share):
    return sorted((site.types[0], site.blocks) for site in share.call_sites)

with Host.spawn(sys.argv[3:], Options(engine=sys.argv[1], record=Path(sys.argv[2]))) as host:
    while b"R" not in open(f"/proc/{host.pid}/comm", "rb").read():
        time.sleep(0.01)
    host.sync()
    live = {}
    for block in host.tracking.live():
        live.setdefault(host.names.label_text(int(block["label"])), []).append(int(block["address"]))
    planted = host._group.first.session.create_script(
        "globalThis.kept = Memory.alloc(64); kept.writePointer(ptr('%d'));" % live["lost"][0])
    planted.load()  # a pointer in Frida's own heap
    found = host.leaks()
    refs = {label: [(ref.where, ref.offset) for ref in host.refs(addresses[0])] for label, addresses in live.items()}
    try:
        host.refs(4096)
    except Exception as error:
        refs["nowhere"] = [(f"{type(error).__name__}: {error}", 0)]
    host.pause()
    try:
        host.leaks()
    except Exception as error:
        refs["paused"] = [(f"{type(error).__name__}: {error}", 0)]
    print(json.dumps({"lost": sites(found.lost), "indirect": sites(found.indirectly_lost), "held": found.held,
                      "complete": found.complete, "refs": refs, "seconds": found.seconds}))
    host.kill()
"""


@pytest.fixture
def judged(runner: Runner, engine: str) -> dict[str, Any]:
    """What a host says of the program `held`, with a list of 20,000 blocks besides."""
    path = runner.folder / "script.py"
    path.write_text(SCRIPT)
    recording = runner.folder / "run.rtrec"
    host = runner.python(path, engine, recording, runner.program("held"), *([] if engine == "portable" else [20_000]))
    assert host.finish() == 0, host.stderr
    found: dict[str, Any] = json.loads(host.stdout.splitlines()[-1])
    replayed = CliRunner().invoke(cli, ["leaks", "--json", str(recording)], catch_exceptions=False)
    return {**found, "replayed": json.loads(replayed.stdout)}


def test_what_is_lost_is_told_from_what_is_held_in_any_way(judged: dict[str, Any], engine: str) -> None:
    assert judged["lost"] == [["lost", 1], ["lost", 1], ["ring", 1]]
    assert sorted(map(tuple, judged["indirect"])) == [("indirect", 10), ("ring", 1)]
    assert judged["held"] == 12 + (20_000 if engine == "native" else 0)
    assert judged["complete"]
    lost = judged["replayed"]["lost"]  # the recording says what was judged
    assert sorted([site["types"][0], site["blocks"]] for site in lost["call_sites"]) == judged["lost"]
    assert sorted((site["types"][0], site["blocks"]) for site in lost["indirectly"]["call_sites"]) == [
        ("indirect", 10),
        ("ring", 1),
    ]
    assert (lost["held"], lost["freed_since"]) == (judged["held"], 0)
    assert not {"lost", "indirect", "ring"} & {site["types"][0] for site in judged["replayed"]["still_held"]}
    refs = judged["refs"]
    assert any("(held_by_global)" in where for where, _ in refs["held-by-global"])
    assert any("(held_by_static)" in where for where, _ in refs["held-by-static"])
    assert any("(tagged)" in where and offset == 5 for where, offset in refs["held-by-tag"])
    assert any("(interior)" in where and offset == 24 for where, offset in refs["held-inside"])
    assert any("libc's heap" in where for where, _ in refs["held-by-libc"])
    assert any(re.search(r"type memzone:held_zone at 0x\w+, at offset 80$", where) for where, _ in refs["held-by-zone"])
    assert any("a register of thread" in where for where, _ in refs["held-by-register"])
    assert any("in frame 1, wait_with_one_on_the_stack at " in where for where, _ in refs["held-by-stack"])
    assert refs["lost"] == []
    assert refs["nowhere"] == [["BadUsage: 0x1000 lies in no live block.", 0]]
    assert refs["paused"] == [["BadUsage: Nothing is recorded now: which blocks are live is not known.", 0]]
    if engine == "native":
        assert any("the stack of held" in where for where, _ in refs["held-by-stack"])


@pytest.mark.parametrize("actors", [("wait", "threads", "malloc"), ("compute", "forks", "signals")])
def test_reading_the_registers_goes_unnoticed(runner: Runner, actors: tuple[str, ...]) -> None:
    program = Restless(runner, *actors)
    program.assert_well()
    for _ in range(8):
        seen = registers.read(program.pid)
        assert program.pid in seen.words
        assert all(len(each) > 27 for each in seen.words.values())
        assert 0 < seen.longest_stop_s < registers.SECONDS
        assert seen.unseen == 0 or "forks" in actors
        program.assert_well()


def test_nothing_that_a_busy_program_frees_later_was_called_lost(runner: Runner) -> None:
    """DPDK's own hash test, looked at while it runs: whoever frees a block had a pointer to it."""
    path = runner.folder / "run.rtrec"
    words = ("--no-huge", "-m", "512", "--no-pci", "--no-telemetry", "--no-shconf", "-l", "0-1")
    program = runner.start("dpdk-test", *words)
    time.sleep(3)  # its prompt is buffered
    with Host.attach(program.pid, Options(record=path)) as host:
        program.tell("hash_autotest")
        for _ in range(6):
            host.leaks()
        program.tell("hash_autotest")
        program.tell("quit")
        assert host.wait(60)
    with Recording(path) as recording:
        findings, replay = recording.findings(LostFinding), Replay(recording).run()
        assert len(findings) == 6
        assert replay.heap.map.totals.frees > 200
        for found in findings:
            told = lost.report(found, replay.names, live=replay.live())
            assert told.freed_since == 0, list(text.lost(lost.report(found, replay.names), 9))
            assert told.held > 0
