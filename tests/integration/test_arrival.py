"""Coming into a program and leaving it while it is never at rest: it does not notice.

About a minute in CI; by hand for as long as you like: `RTETRACK_ARRIVAL_ROUNDS=1000 pytest tests/integration/test_arrival.py`.
"""

from __future__ import annotations

import os

import pytest
from restless import Restless
from tracked import Accusations, Runner

from frida_rtetrack import Host, Options
from frida_rtetrack.errors import NoSafeMoment

LOADS = {
    "registers": ("compute", "threads", "signals"),
    "main forks": ("fork", "threads"),
    "another forks": ("malloc", "forks"),
    "main loads": ("dlopen", "malloc"),
    "another loads": ("compute", "loads", "forks"),
    "main waits": ("wait",),
    "main waits, all else": ("wait", "threads", "loads", "malloc"),
    "malloc": ("malloc", "malloc", "signals"),
}
ROUNDS = int(os.environ.get("RTETRACK_ARRIVAL_ROUNDS", "60")) // len(LOADS)
"""Of attaching and leaving, for each load."""


@pytest.mark.timeout(120 + 20 * ROUNDS)
@pytest.mark.parametrize("actors", LOADS.values(), ids=LOADS)
def test_attaching_and_leaving_goes_unnoticed(runner: Runner, actors: tuple[str, ...]) -> None:
    program = Restless(runner, *actors)
    program.assert_well()
    with Host.attach(program.pid):  # Frida's dependencies, libdl and the like, are never unloaded
        pass
    usual = program.usual_traces()
    refused = 0
    for _ in range(ROUNDS):
        observer = Accusations()
        try:
            with Host.attach(program.pid, Options(dump_on_bad_free=False), observer) as host:
                host.wait(0.05)
                program.assert_well()
        except NoSafeMoment:
            refused += 1
        program.assert_well()
        assert observer.said == []
        assert program.usual_traces() == usual
    print(f"{ROUNDS} rounds, {refused} refused, actors {program.actors()}")
    assert refused <= ROUNDS // 4
