"""What cannot be done is said in a sentence with what to do about it, and the status is not zero."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tracked import Runner, Tracked, foreign_mappings


def complaint(tracked: Tracked) -> str:
    """The one thing that it said, without a traceback."""
    assert tracked.wait() not in (0, None), tracked.stdout
    assert "Traceback" not in tracked.stderr
    lines = [line for line in tracked.stderr.splitlines() if line.startswith("rtetrack-frida: ")]
    assert lines, tracked.stderr
    return lines[-1]


def test_no_such_program(runner: Runner) -> None:
    assert "no program ./does-not-exist" in complaint(runner.run("./does-not-exist"))


def test_a_directory_is_no_program(runner: Runner, tmp_path: Path) -> None:
    assert "directory" in complaint(runner.run(str(tmp_path)))


def test_a_program_that_may_not_be_executed(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "plain"
    path.write_text("#!/bin/sh\n")
    assert "chmod +x" in complaint(runner.run(str(path)))


def test_a_script_whose_interpreter_is_missing(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text("#!/does/not/exist\n")
    path.chmod(0o755)
    assert "cannot be executed" in complaint(runner.run(str(path)))


def test_a_fully_static_program_is_refused_at_spawn_and_at_attach(runner: Runner) -> None:
    assert "fully static" in complaint(runner.run("static_sleeper"))
    program = runner.start_ready("static_sleeper")
    assert "fully static" in complaint(runner.attach(program.pid, wait=False))
    assert program.alive


@pytest.mark.parametrize(
    ("machine", "word", "name"),
    [(183, 2, "aarch64"), (3, 1, "32 bits"), (243, 2, "riscv64")],
    ids=["arm", "x86", "riscv"],
)
def test_a_program_for_another_machine(runner: Runner, tmp_path: Path, machine: int, word: int, name: str) -> None:
    header = bytearray(Path("/bin/true").read_bytes()[:4096])
    header[4] = word
    header[18:20] = machine.to_bytes(2, "little")
    path = tmp_path / "foreign"
    path.write_bytes(header)
    path.chmod(0o755)
    assert name in complaint(runner.run(str(path)))


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(57)], ids=["empty", "cut", "zeros"]
)
def test_a_damaged_program(runner: Runner, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(content)
    path.chmod(0o755)
    complaint(runner.run(str(path)))


def test_no_such_process(runner: Runner) -> None:
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    assert f"no process {process.pid}" in complaint(runner.attach(process.pid, wait=False))
    assert "no process named" in complaint(runner.attach("no-such-name", wait=False))


def test_a_zombie_is_no_process_to_attach_to(runner: Runner) -> None:
    process = subprocess.Popen(["/bin/true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert "zombie" in complaint(runner.attach(process.pid, wait=False))
    process.wait()


def test_a_process_under_a_debugger(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    debugger = runner.start("gdb", "-nx", "-q", "-p", program.pid)
    debugger.tell("print 6*7")
    debugger.wait_for(r"\$1 = 42")
    assert "being traced" in complaint(runner.attach(program.pid, wait=False))
    debugger.tell("detach")
    debugger.finish()


def test_another_users_process_is_not_permitted(runner: Runner, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    program = runner.start_ready("waiter")
    script = tmp_path / "as_nobody.py"
    script.write_text(
        "import os, sys\n"
        "from frida_rtetrack import errors\n"
        "from frida_rtetrack.target import process\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    process.check_attachable(int(sys.argv[1]))\n"
        "except errors.NotPermitted as error:\n"
        "    print('refused:', error, error.hint)\n"
    )
    refused = runner.python(script, program.pid)
    assert refused.finish() == 0, refused.stderr
    assert "refused:" in refused.stdout
    assert "root" in refused.stdout


def test_attach_to_a_program_without_dpdk_is_refused_at_once_and_leaves_it_alone(runner: Runner) -> None:
    program = runner.start("/bin/sleep", 60)
    told = complaint(runner.attach(program.pid, wait=False))
    assert "rte_malloc_socket" in told
    assert "searched" in told
    assert program.alive
    assert not foreign_mappings(program.pid)


def test_a_spawned_program_that_never_loads_dpdk_is_told_of_at_its_end(runner: Runner) -> None:
    tracked = runner.run("/bin/sh", "-c", "exit 3")
    assert tracked.wait() == 3
    assert "never loaded DPDK" in tracked.stderr


def test_a_run_that_never_used_dpdk_does_not_pass_unless_that_is_allowed(runner: Runner) -> None:
    never_loaded = runner.run("/bin/true")
    assert "--allow-no-dpdk" in complaint(never_loaded)
    assert never_loaded.wait() == 125
    assert never_loaded.summary["target"]["exit_status"] == 0
    never_used = runner.run("waits")
    assert "never used" in complaint(never_used)
    assert never_used.wait() == 125
    assert runner.run("/bin/true", options=["--error-exitcode", 9]).wait() == 9
    assert runner.run("/bin/true", options=["--error-exitcode", 9, "--allow-no-dpdk"]).wait() == 0


def test_lib_that_names_nothing_lists_what_comes_close(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    told = complaint(runner.attach(program.pid, options=["--lib", "librte_nothing.so"], wait=False))
    assert "librte_nothing.so" in told
    assert "librte_eal.so" in told
    assert program.alive


def test_lib_that_names_nothing_is_told_of_at_the_end_of_a_spawned_program(runner: Runner) -> None:
    tracked = runner.run("demo", options=["--lib", "librte_nothing.so"])
    assert "librte_nothing.so" in tracked.stderr
    assert tracked.summary["events"]["allocations"] == 0


@pytest.mark.parametrize("name", ["librte_eal.so", "librte_eal.so.23"])
def test_lib_that_names_the_library_works(runner: Runner, name: str) -> None:
    assert len(runner.run("demo", options=["--lib", name]).summary["bad_frees"]) == 2
    given = {"RTE_MALLOC_TRACK_DPDK_LIBNAME": name}
    assert len(runner.run("demo", env=given).summary["bad_frees"]) == 2


def test_an_option_beats_the_variable_for_the_library(runner: Runner) -> None:
    tracked = runner.run("demo", options=["--lib", "librte_eal.so"], env={"RTE_MALLOC_TRACK_DPDK_LIBNAME": "wrong.so"})
    assert len(tracked.summary["bad_frees"]) == 2


@pytest.mark.parametrize("where", ["missing/summary.json", "."])
def test_a_summary_that_cannot_be_written_is_told_before_anything_is_started(
    runner: Runner, tmp_path: Path, where: str
) -> None:
    tracked = runner.run("demo", options=["--summary", tmp_path / where])
    assert "summary" in complaint(tracked)
    assert "demo: done" not in tracked.stdout


def test_version_and_help(runner: Runner) -> None:
    command = [sys.executable, "-m", "frida_rtetrack"]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"rtetrack-frida \d+\.\d+\S*, engine: native \((\w+ \d+\.\d+ -O2|TinyCC)\)\n", version.stdout)
    for words in (["--help"], ["spawn", "--help"], ["attach", "--help"]):
        assert subprocess.run([*command, *words], capture_output=True, timeout=60).returncode == 0
    assert subprocess.run([*command, "spawn", "--no-such-option", "x"], capture_output=True, timeout=60).returncode == 2


def test_a_stopped_process_is_refused_at_once_and_stays_stopped(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    program.send_signal(signal.SIGSTOP)
    tracked = runner.attach(program.pid, options=["--duration", 1], wait=False)
    assert f"kill -CONT {program.pid}" in complaint(tracked)
    status = Path(f"/proc/{program.pid}/status").read_text()
    assert re.search(r"^State:\tT \(stopped\)$", status, re.MULTILINE)
    assert re.search(r"^TracerPid:\t0$", status, re.MULTILINE)
    program.send_signal(signal.SIGCONT)
    assert program.ask("say alive", "^said alive$")
