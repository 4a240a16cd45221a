"""A real program that nobody here wrote: dpdk-testpmd from Debian's packages."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable

import pytest
from tracked import Runner, Tracked, foreign_mappings, functions

from frida_rtetrack import Host, Options

pytestmark = pytest.mark.skipif(
    shutil.which("dpdk-testpmd") is None, reason="Debian's package dpdk-dev is not installed"
)

PROMPT = "testpmd> "  # what testpmd prints else reaches a pipe late: it is buffered
TYPES = {"rte_services", "rte_service_core_states", "net_null0", "net_null1", "testpmd: ports"}


def arguments() -> list[str]:
    return [
        *("--no-huge", "-m", "512", "--no-pci", "--no-telemetry", "--no-shconf"),
        *("--file-prefix", f"t{os.getpid()}", "--vdev", "net_null0", "--vdev", "net_null1"),
        *("--", "-i", "--total-num-mbufs=2048"),
    ]


def dump_of(tracked: Tracked, pid: int, count: int) -> set[str]:
    os.kill(pid, signal.SIGRTMIN)
    tracked.wait_for(rf"(SIGRTMIN: .* written to[^$]*){{{count}}}", "stderr")
    return {row.type for row in tracked.dump}


def test_spawned(runner: Runner, engine: str) -> None:
    tracked = runner.spawn("dpdk-testpmd", *arguments(), options=["--engine", engine])
    tracked.wait_for(PROMPT)
    assert dump_of(tracked, tracked.target, 1) >= TYPES
    tracked.tell("quit")
    assert tracked.finish() == 0
    found = tracked.summary
    assert found["bad_frees"] == []
    assert found["events"]["lost"] == 0
    for site in found["call_sites"]:
        assert functions(site["backtrace"])[-1] in ("_start", None) or len(site["backtrace"]) >= 16


def test_attached_while_it_forwards(runner: Runner, engine: str) -> None:
    program = runner.start("dpdk-testpmd", *arguments())
    program.wait_for(PROMPT)
    program.ask("start", PROMPT)
    tracked = runner.attach(program.pid, options=["--engine", engine])
    program.ask("stop", PROMPT)
    program.ask("port stop all", PROMPT)
    program.ask("port close 1", PROMPT)
    program.ask("port attach net_null7", PROMPT)
    assert "net_null7" in dump_of(tracked, program.pid, 1)
    tracked.send_signal(signal.SIGINT)
    assert tracked.wait() == 0
    assert tracked.summary["bad_frees"] == []
    assert not foreign_mappings(program.pid)
    program.tell("quit")
    assert program.finish() == 0


def test_nothing_that_it_uses_is_called_lost(runner: Runner) -> None:
    program = runner.start("dpdk-testpmd", *arguments())
    program.wait_for(PROMPT)
    program.ask("start", PROMPT)
    with Host.attach(program.pid) as host:
        for _ in range(3):
            found = host.leaks()
            assert (found.lost.blocks, found.indirectly_lost.blocks) == (0, 0), found
            assert found.held > 100
    del host
    gc.collect()
    program.tell("quit")
    assert program.finish() == 0


def test_it_ends_tracked_as_it_ends_alone(runner: Runner) -> None:
    program = runner.start("dpdk-testpmd", *arguments())
    program.wait_for(PROMPT)
    tracked = runner.attach(program.pid)
    program.tell("quit")
    assert program.finish() == 0
    assert tracked.wait() == 0
    assert tracked.summary["bad_frees"] == []
    assert re.search("Bye", program.stdout)


def test_its_locked_memory_grows_by_little(runner: Runner) -> None:
    def resident_kib(pid: int) -> int:
        found = re.search(r"^VmRSS:\s+(\d+) kB", open(f"/proc/{pid}/status").read(), re.MULTILINE)
        assert found is not None
        return int(found[1])

    program = runner.start("dpdk-testpmd", *arguments())
    program.wait_for(PROMPT)
    assert re.search(r"^VmLck:\s+[1-9]", open(f"/proc/{program.pid}/status").read(), re.MULTILINE)
    before = resident_kib(program.pid)
    tracked = runner.attach(program.pid)
    assert resident_kib(program.pid) - before < 250 * 1024
    tracked.send_signal(signal.SIGINT)
    assert tracked.wait() == 0
    assert resident_kib(program.pid) - before < 40 * 1024


STEPS = (
    "stop",
    "port stop all",
    "port close 0",
    "port attach net_null7",
    "port start all",
    "start",
    "stop",
    "port stop all",
    "port close 1",
    "port detach 2",
    "port attach net_null8",
)


def step_words(*memory: str) -> list[str]:
    words = [*memory, "--no-pci", "--no-telemetry", "--file-prefix", f"t{os.getpid()}", "--vdev", "net_null0"]
    return [*words, "--vdev", "net_null1", "--", "-i", "--total-num-mbufs=2048", "--no-mlockall"]


def check_steps(host: Host, tell: Callable[[str], None]) -> None:
    for command in STEPS:
        tell(command)
        time.sleep(0.7)
        difference = host.verify()
        assert difference is not None
        assert not difference, f"after {command}: {difference}"
    tell("quit")
    assert host.wait(30)
    assert host.bad_frees == []
    assert host.lost == 0


def test_attached_the_tracking_agrees_with_dpdk_at_every_step_of_its_ports(runner: Runner) -> None:
    pmd = runner.start("dpdk-testpmd", *step_words("--no-huge", "--no-shconf", "-m", "256"))
    time.sleep(4)
    pmd.tell("start")
    with Host.attach(pmd.pid, Options(dump_on_bad_free=False)) as host:
        check_steps(host, pmd.tell)
    assert pmd.wait() == 0


def test_spawned_with_hugepages_the_tracking_agrees_with_dpdk_at_every_step_of_its_ports(hugepages: None) -> None:
    shown, terminal = os.openpty()
    reader = threading.Thread(target=read_all, args=(shown,), daemon=True)  # or it would stop at a full terminal
    reader.start()
    options = Options(dump_on_bad_free=False, verify=True)
    with Host.spawn(["dpdk-testpmd", *step_words("-m", "128")], options, terminal=terminal) as host:
        time.sleep(6)
        os.write(shown, b"start\n")
        check_steps(host, lambda command: os.write(shown, command.encode() + b"\n") and None)
        ending = host.wait_for_exit()
    assert (ending.exit_status, ending.why) == (0, "exited")
    assert host.tracking.totals.baseline_blocks == 0
    os.close(terminal)


def read_all(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(descriptor, 4096):
            pass
