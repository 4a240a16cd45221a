"""Programs that are not given what an attach needs are refused or warned of before they are touched; so are we."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tracked import Process, Runner, foreign_mappings

UNDER_LIMITS = "import os, resource, sys; resource.setrlimit(getattr(resource, sys.argv[1]), (int(sys.argv[2]),) * 2); os.execvp(sys.argv[3], sys.argv[3:])"


def is_left_alone(program: Process) -> bool:
    found = not foreign_mappings(program.pid) and len(os.listdir(f"/proc/{program.pid}/task")) <= 2
    return found and bool(program.ask("say alive", "^said alive$"))


@pytest.mark.parametrize(
    ("call", "how"), [("memfd_create", ""), ("openat", ""), ("socket", ""), ("memfd_create", "errno")]
)
def test_a_seccomp_filter_that_an_attach_would_not_pass_is_told_and_nothing_is_tried(
    runner: Runner, call: str, how: str
) -> None:
    program = runner.start_ready("confined", call, *([how] if how else []))
    refused = runner.attach(program.pid, wait=False)
    assert refused.wait() == 125
    assert f"{call} {'is refused' if how else 'would kill it'}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert is_left_alone(program)


def test_a_seccomp_filter_that_forbids_nothing_of_ours_is_no_obstacle(runner: Runner) -> None:
    program = runner.start_ready("confined")
    attached = runner.attach(program.pid, options=["--duration", 0.5])
    assert attached.wait() == 0
    assert attached.stderr.count("seccomp") == 0
    assert is_left_alone(program)


@pytest.mark.parametrize(
    ("limit", "value", "says"), [("RLIMIT_NOFILE", 12, "files open"), ("RLIMIT_AS", 600 << 20, "address space")]
)
def test_a_limit_that_an_attach_would_meet_is_told_and_nothing_is_tried(
    runner: Runner, limit: str, value: int, says: str
) -> None:
    program = runner.start(sys.executable, "-c", UNDER_LIMITS, limit, value, runner.program("waiter"))
    program.wait_for("^ready$")
    refused = runner.attach(program.pid, wait=False)
    assert refused.wait() == 125
    assert says in refused.stderr
    assert f"prlimit --pid {program.pid}" in refused.stderr
    assert is_left_alone(program)


@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        ("RLIMIT_NOFILE", 10, "may have 10 files open at the most, and needs 64"),
        ("RLIMIT_NOFILE", 40, "may have 40 files open at the most, and needs 64"),
        ("RLIMIT_AS", 2500 << 20, "rtetrack-frida ran out of memory"),
    ],
)
def test_what_we_have_too_little_of_is_one_sentence(
    runner: Runner, tmp_path: Path, limit: str, value: int, told: str
) -> None:
    program = runner.start_ready("waiter")
    command = [
        sys.executable,
        "-m",
        "frida_rtetrack",
        "attach",
        "--quiet",
        "--dump-file",
        tmp_path / "dump",
        program.pid,
    ]
    ended = subprocess.run(
        [sys.executable, "-c", UNDER_LIMITS, limit, str(value), *map(str, command)],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env=runner.environment,
    )  # fmt: skip
    assert ended.returncode == 125
    assert ended.stderr.startswith("rtetrack-frida: ")
    assert told in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert program.ask("say alive", "^said alive$")
    assert program.finish() == 0
