"""Attach, verify and leave, again and again, while the program does everything at once.

Short in CI; by hand for as long as you like: `RTETRACK_STRESS_SECONDS=1800 pytest tests/integration/test_stress.py`.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from tracked import Accusations, Runner

from frida_rtetrack import Host, Options

SECONDS = float(os.environ.get("RTETRACK_STRESS_SECONDS", "10"))


def test_nothing_is_lost_accused_or_broken_while_threads_forks_libraries_and_signals_come_and_go(
    runner: Runner,
) -> None:
    program = runner.start_ready("stress", runner.program("plugin.so"))
    deadline = time.monotonic() + SECONDS
    rounds = 0
    while time.monotonic() < deadline:
        observer = Accusations()
        with Host.attach(program.pid, Options(dump_on_bad_free=False), observer) as host:
            host.wait(0.5)
            assert not host.verify()
        assert observer.said == []
        assert host.lost == 0
        assert host.tracking.totals.allocations > 0
        assert program.alive, f"it ended with status {program.finish()}"
        rounds += 1
    assert rounds
    program.send_signal(signal.SIGTERM)
    assert program.finish() == 0
    assert int(program.stdout.split()[-1]) > 0


# While a program forks, Frida holds JavaScript up, and the portable engine misses calls (docs/limits.md).
@pytest.mark.parametrize(("engine", "without"), [("native", []), ("portable", ["nofork"])], ids=["native", "portable"])
def test_a_stressed_program_from_its_start_to_its_end_is_tracked_exactly(
    runner: Runner, engine: str, without: list[str]
) -> None:
    options = ["--engine", engine, "--verify", "--no-dump-on-bad-free"]
    tracked = runner.spawn("stress", runner.program("plugin.so"), *without, options=options)
    tracked.wait_for("^ready$")
    time.sleep(min(SECONDS / 4, 60))
    tracked.send_signal(signal.SIGTERM)
    assert tracked.finish() == 0, tracked.stderr
    found = tracked.summary
    assert found["bad_frees"] == []
    assert found["events"]["lost"] == 0
    assert found["verify"] == {"missing": [], "unexpected": []}
    pairs = int(tracked.stdout.split()[-1])
    assert found["events"]["allocations"] >= pairs
    assert found["events"]["resizes"] > 0
    assert {kind for site in found["call_sites"] for kind in site["types"]} <= {
        "rte_services",
        "rte_service_core_states",
    }
