"""What the prompt can do, a script can: `from frida_rtetrack import Host`."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

from tracked import Runner, foreign_mappings

from frida_rtetrack import Host

ATTACH = """
import sys
from frida_rtetrack import Host

with Host.attach(int(sys.argv[1])) as host:
    print("ready", flush=True)
    sys.stdin.readline()
    path, blocks = host.dump(sys.argv[2])
    stats = host.stats()
    print(blocks, host.tracking.live_blocks, stats.allocations, stats.bad_frees, stats.lost)
    print(host.top(1, "bytes")[0].size_bytes > 0)
    (bad,) = host.bad_frees
    print(bad.kind.name, bad.stack.frames[0].function)
    print(host.find(bad.address).freed is not None)
    host.pause()
    host.resume_recording()
print(host.summary().ending.why)
"""

LEFT = """
import sys
from frida_rtetrack import Host
from frida_rtetrack.errors import BadUsage

with Host.attach(int(sys.argv[1])) as host:
    try:
        host.resume()
    except BadUsage as error:
        print(error)
    host.leave()
    print(host.wait_for_exit().why)
"""

SPAWN = """
import sys
from frida_rtetrack import Host
from frida_rtetrack.host import Observer

class Mine(Observer):
    def bad_free(self, report):
        print("told of", report.kind.name, report.function, flush=True)

with Host.spawn([sys.argv[1]], observer=Mine()) as host:
    ending = host.wait_for_exit()
print(ending.exit_status, ending.signal, len(host.bad_frees), host.summary().allocations > 0)
"""

ERRORS = """
from frida_rtetrack import Host
from frida_rtetrack.errors import RtetrackError
import os, threading

for target in (os.getppid(), "no such name", 2**22 + 1):
    try:
        Host.attach(target)
    except RtetrackError as error:
        print(type(error).__name__)
try:
    Host.spawn(["/does/not/exist"])
except RtetrackError as error:
    print(type(error).__name__)
print("left", [thread.name for thread in threading.enumerate() if thread.name in ("drain", "do_work", "keep_heartbeat")])
"""


def script(runner: Runner, text: str, *arguments: object) -> tuple[Path, tuple[object, ...]]:
    path = runner.folder / "script.py"
    path.write_text(text)
    return path, arguments


def test_attach_dump_stats_and_questions(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    path, arguments = script(runner, ATTACH, program.pid, runner.folder / "d.csv")
    api = runner.python(path, *arguments)
    api.wait_for("^ready$")
    program.ask("leak 4321", "^leaked")
    program.ask("bad", "^freed twice$")
    api.tell("go on")
    assert api.finish() == 0, api.stderr
    figures, any_bytes, bad, found, why = api.stdout.splitlines()[1:]
    blocks, live, allocations, bad_frees, lost = map(int, figures.split())
    assert blocks == live
    assert (allocations, bad_frees, lost) == (2, 1, 0)
    assert (any_bytes, bad, found, why) == ("True", "DUPLICATE free_twice", "True", "detached")
    assert not foreign_mappings(program.pid)
    assert program.finish() == 0


def test_a_program_that_was_attached_to_and_left_runs(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    path, arguments = script(runner, LEFT, program.pid)
    api = runner.python(path, *arguments)
    assert api.finish() == 0, api.stderr
    assert api.stdout.splitlines() == ["The program was attached to: it runs.", "running"]
    assert program.finish() == 0


def test_spawn_with_an_observer(runner: Runner) -> None:
    path, arguments = script(runner, SPAWN, runner.program("demo"))
    api = runner.python(path, *arguments)
    assert api.finish() == 0, api.stderr
    told = [line for line in api.stdout.splitlines() if "told of" in line]
    assert len(told) == 2
    assert "told of DUPLICATE rte_free" in told
    assert api.stdout.splitlines()[-1] == "0 None 2 True"


def test_errors_are_exceptions_and_leave_no_threads(runner: Runner) -> None:
    path, arguments = script(runner, ERRORS)
    api = runner.python(path, *arguments)
    assert api.finish() == 0, api.stderr
    assert api.stdout.splitlines() == ["NoDpdk", "NoSuchProcess", "NoSuchProcess", "NoSuchProgram", "left []"]


def test_a_host_is_no_tracked_process(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    with Host.attach(program.pid):
        path, arguments = script(runner, ERRORS)
        api = runner.python(path, *arguments)  # whose parent, this process, has the session memory mapped
        assert api.finish() == 0, api.stderr
        assert api.stdout.splitlines()[0] == "NoDpdk"


def test_a_host_that_was_closed_and_dropped_gives_its_memory_back(runner: Runner) -> None:
    program = runner.start_ready("waiter")
    with Host.attach(program.pid) as host:
        assert host.hooks
    dropped = weakref.ref(host)
    del host
    gc.collect()
    assert dropped() is None
