"""Programs that are process 1, or live in namespaces of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tracked import Runner, eventually, foreign_mappings

CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc"]


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if os.geteuid() != 0 or subprocess.run([*CONTAINER, "/bin/true"], capture_output=True).returncode != 0:
        pytest.skip("namespaces cannot be made here")


def first_child(pid: int) -> int:
    eventually(lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text())
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def inside(runner: Runner, pid: int, *words: object) -> subprocess.CompletedProcess[str]:
    """rtetrack-frida attach in the namespaces of process `pid`."""
    command = [sys.executable, "-m", "frida_rtetrack", "attach", "--dump-file", str(runner.folder / "dump")]
    return subprocess.run(
        ["nsenter", "-t", str(pid), "-p", "-m", *command, *map(str, words)],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env=runner.environment,
    )  # fmt: skip


def test_a_program_in_a_container_is_refused_from_outside_and_process_1_is_attached_to_inside(runner: Runner) -> None:
    container = runner.start(CONTAINER[0], *CONTAINER[1:], runner.program("waiter"))
    container.wait_for("^ready$")
    pid = first_child(container.pid)
    refused = runner.attach(pid, wait=False)
    assert refused.wait() == 125
    assert f"Process {pid} is in a container: it has numbers of its own" in refused.stderr
    assert f"nsenter -t {pid}" in refused.stderr
    attached = inside(runner, pid, "--duration", 1, 1)
    assert attached.returncode == 0, attached.stderr
    assert "Process 1 was detached and runs on" in attached.stderr
    assert not foreign_mappings(pid)
    assert container.ask("say alive", "^said alive$")


def test_an_init_without_dpdk_is_not_touched(runner: Runner) -> None:
    container = runner.start(CONTAINER[0], *CONTAINER[1:], "sleep", 60)
    pid = first_child(container.pid)
    eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    told = inside(runner, pid, 1)
    assert told.returncode == 125
    assert told.stderr == "rtetrack-frida: Process 1 is the system's init (sleep), and has no DPDK in it.\n"


def test_a_program_with_a_network_of_its_own_is_refused(runner: Runner) -> None:
    program = runner.start("unshare", "--net", runner.program("waiter"))
    program.wait_for("^ready$")
    refused = runner.attach(program.pid, wait=False)
    assert refused.wait() == 125
    assert "a network of its own" in refused.stderr
    assert program.ask("say alive", "^said alive$")
