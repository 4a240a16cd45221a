"""The engine in the program against a session memory that another process writes: nothing in it is followed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from frida_rtetrack.native import build
from frida_rtetrack.stream.events import THREAD_DTYPE

SOURCE = Path(__file__).resolve().parents[1] / "native" / "scribbled.c"
READ_BY_THE_HOST = {"tid", "process", "name", "appending", "stack_low", "stack_high"}


def test_a_thread_slot_has_nothing_that_a_process_reads_back() -> None:
    assert THREAD_DTYPE.names is not None
    assert {name for name in THREAD_DTYPE.names if not name.startswith("reserved")} == READ_BY_THE_HOST


@pytest.fixture(scope="module")
def scribbled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("scribbled") / "scribbled"
    command = ["gcc", "-O1", "-g", "-w", "-fno-omit-frame-pointer", "-rdynamic", "-pthread", "-ldl"]
    subprocess.run([*command, "-o", program, SOURCE], check=True)
    return program


@pytest.mark.skipif(build.find_compiler() is None, reason="there is no C compiler here")
def test_whatever_is_in_the_session_memory_threads_and_forked_children_touch_only_what_is_theirs(
    scribbled: Path, tmp_path: Path
) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    engine = tmp_path / build.ENGINE
    build.build_engine(compiler, engine)
    ran = subprocess.run([scribbled, engine], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[0]) > 10_000
