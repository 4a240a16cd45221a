"""Names of a program that ran elsewhere: its files are found by the build-ids that were recorded, and no other file is used."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from written import PATIENCE_SECONDS

from frida_rtetrack.commands.cli import cli
from frida_rtetrack.recording.file import RecordingFile, create
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.replay import RecordedNames
from frida_rtetrack.reports.summary import Start
from frida_rtetrack.stream.events import StackEnd
from frida_rtetrack.stream.ring import StackRecord
from frida_rtetrack.symbols import sources
from frida_rtetrack.symbols.elf import ElfFile
from frida_rtetrack.symbols.names import Stack
from frida_rtetrack.symbols.sources import Sources
from frida_rtetrack.symbols.symbolizer import PAGE_BYTES, Frame, Module

BASE = 0x5555_0000_0000
SOURCE = "int twice(int x) {\n    return 2 * x;\n}\nint main(void) { return twice(3); }\n"


class Program:
    """A program in the folder `home` with a recording of a stack in it; then it went somewhere else."""

    def __init__(self, home: Path, *flags: str) -> None:
        home.mkdir(exist_ok=True)
        self.path = home / "app"
        (home / "app.c").write_text(SOURCE)
        subprocess.run(["gcc", "-g", "-O0", *flags, "-o", self.path, home / "app.c"], check=True)
        elf = ElfFile(os.open(self.path, os.O_RDONLY))
        self.build_id = elf.build_id
        low, _, end = elf.memory_range(PAGE_BYTES)
        offset = elf.functions()[0].addresses(["twice"])["twice"]
        self.module = Module(str(self.path), BASE, end - low, 0, build_id=self.build_id)
        self.address = BASE + offset - low + 8

    def record(self, path: Path, *, frames: tuple[Frame, ...] = ()) -> Path:
        create(path, force=True)
        file = RecordingFile(path)
        file.about(started=Start.now(), ended=True)
        file.process(0, 4711, ("app",))
        file.module(0, self.module)
        file.stack(1, StackRecord((self.address,), StackEnd.COMPLETE, 0, 0))
        if frames:
            file.frames(1, Stack(frames, None))
        file.commit()
        file.close()
        return path

    def strip_into(self, debug: Path) -> None:
        subprocess.run(["objcopy", "--only-keep-debug", self.path, debug], check=True)
        subprocess.run(["strip", self.path], check=True)


def read(path: Path, found: Sources) -> tuple[Frame, ...]:
    with Recording(path, found) as recording:
        stack = RecordedNames(recording).stack(1)
        assert stack is not None
        return stack.frames


def named(frames: tuple[Frame, ...]) -> tuple[str | None, int | None]:
    return frames[0].function, frames[0].line


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "home")


def test_files_are_found_by_build_id_wherever_they_lie(program: Program, tmp_path: Path) -> None:
    path, elsewhere = program.record(tmp_path / "run.rtrec"), tmp_path / "sent"
    assert named(read(path, Sources())) == ("twice", 2)
    (elsewhere / "deep" / "down").mkdir(parents=True)
    program.path.rename(elsewhere / "deep" / "down" / "renamed")
    assert named(read(path, Sources())) == (None, None)
    assert named(read(path, Sources([elsewhere]))) == ("twice", 2)


def test_a_stripped_program_and_its_debug_file_together_give_names(program: Program, tmp_path: Path) -> None:
    path, folder = program.record(tmp_path / "run.rtrec"), tmp_path / "debug"
    folder.mkdir()
    program.strip_into(folder / "some.debug")
    assert named(read(path, Sources())) == (None, None)
    assert named(read(path, Sources([folder]))) == ("twice", 2)
    program.path.rename(folder / "app")
    assert named(read(path, Sources([folder]))) == ("twice", 2)
    (folder / "app").unlink()
    assert named(read(path, Sources([folder]))) == ("twice", 2)


def test_a_file_with_another_build_id_is_not_used_and_that_is_said(program: Program, tmp_path: Path) -> None:
    path = program.record(tmp_path / "run.rtrec")
    other = Program(tmp_path / "other", "-DOTHER=1", "-O1")
    assert other.build_id != program.build_id
    found = Sources([other.path.parent])
    program.path.unlink()
    assert named(read(path, found)) == (None, None)
    (note,) = found.notes
    assert f"{other.path} is not used" in note
    assert program.build_id is not None
    assert program.build_id.hex() in note
    shutil.copy(other.path, program.path)
    found = Sources()
    assert named(read(path, found)) == (None, None)
    assert f"{program.path} is not the file that ran" in found.notes[0]
    result = CliRunner().invoke(cli, ["table", "--symbol-path", str(other.path.parent), str(path)])
    assert result.exit_code == 0


def test_a_program_without_a_build_id_is_not_mixed_up(tmp_path: Path) -> None:
    program = Program(tmp_path / "home", "-Wl,--build-id=none")
    path = program.record(tmp_path / "run.rtrec")
    moved = tmp_path / "moved"
    moved.mkdir()
    program.path.rename(moved / "app")
    found = Sources([moved])
    assert named(read(path, found)) == (None, None)
    assert "no build-id was recorded of it" in found.notes[0]


def test_what_was_looked_up_then_is_kept_and_only_completed(program: Program, tmp_path: Path) -> None:
    nameless = Frame(program.address, "app", program.address - BASE, None, None, None, None, False, str(program.path))
    then = replace(nameless, function="as_it_was", file="/src/then.c", line=7)
    moved = tmp_path / "moved"
    shutil.copytree(program.path.parent, moved)
    program.path.unlink()
    assert named(read(program.record(tmp_path / "a", frames=(then,)), Sources([moved]))) == ("as_it_was", 7)
    assert named(read(program.record(tmp_path / "b", frames=(nameless,)), Sources([moved]))) == ("twice", 2)
    assert named(read(program.record(tmp_path / "c", frames=(nameless,)), Sources())) == (None, None)


def test_strange_files_in_the_directory_are_passed_over(program: Program, tmp_path: Path) -> None:
    path, folder = program.record(tmp_path / "run.rtrec"), tmp_path / "strange"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder)
    (folder / "broken").symlink_to(folder / "nowhere")
    (folder / "cut").write_bytes(program.path.read_bytes()[:100])
    (folder / "text").write_text("hello")
    program.path.rename(folder / "app")
    assert named(read(path, Sources([folder]))) == ("twice", 2)


# ---- debuginfod


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """elfutils' own server on this machine, of the files in the folder that is returned."""
    if shutil.which("debuginfod") is None or shutil.which("debuginfod-find") is None:
        pytest.skip("Debian's package debuginfod is not installed")
    folder = tmp_path / "served"
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = open(tmp_path / "server.log", "wb")
    process = subprocess.Popen(
        ["debuginfod", "-v", "-d", ":memory:", "-p", str(port), "-t", "1", "-F", folder], stdout=log, stderr=log
    )
    monkeypatch.setenv("DEBUGINFOD_URLS", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("DEBUGINFOD_CACHE_PATH", str(tmp_path / "cache"))
    yield folder
    process.terminate()
    process.wait(PATIENCE_SECONDS)
    log.close()


def wait_until_served(build_id: bytes | None) -> None:
    assert build_id is not None
    url, deadline = (
        f"{os.environ['DEBUGINFOD_URLS']}/buildid/{build_id.hex()}/debuginfo",
        time.monotonic() + PATIENCE_SECONDS,
    )
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "it is not served"
            time.sleep(0.1)


def test_debuginfod_is_asked_where_it_is_named(program: Program, tmp_path: Path, server: Path) -> None:
    path = program.record(tmp_path / "run.rtrec")
    shutil.copy(program.path, server / "whatever")
    wait_until_served(program.build_id)
    program.path.unlink()
    assert named(read(path, Sources())) == (None, None)
    assert named(read(path, Sources(ask_debuginfod=True))) == ("twice", 2)


def stand_in(folder: Path, says: str) -> None:
    folder.mkdir(exist_ok=True)
    find = folder / "debuginfod-find"
    find.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{says}\n')
    find.chmod(find.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("says", ["echo {other}", "exit 1", "echo /nowhere", "echo {text}", "sleep 9"])
def test_what_debuginfod_gives_is_checked(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str
) -> None:
    path = program.record(tmp_path / "run.rtrec")
    other = Program(tmp_path / "other", "-O1")
    program.path.unlink()
    (tmp_path / "text").write_text("no ELF file")
    stand_in(tmp_path / "bin", says.format(other=other.path, text=tmp_path / "text"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DEBUGINFOD_URLS", "http://127.0.0.1:1")
    monkeypatch.setattr(sources, "FIND_SECONDS", 0.5)
    found = Sources(ask_debuginfod=True)
    assert named(read(path, found)) == (None, None)
    assert program.build_id is not None
    asked = (tmp_path / "bin" / "asked").read_text().splitlines()
    assert asked[0] == f"debuginfo {program.build_id.hex()}"
    assert len(asked) == (1 if says == "sleep 9" else 2)
    if says in ("echo {other}", "sleep 9"):
        assert found.notes


@pytest.mark.parametrize("case", ["no URL", "names are recorded", "all is at hand"])
def test_debuginfod_is_not_asked_without_need(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    stand_in(tmp_path / "bin", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DEBUGINFOD_URLS", "" if case == "no URL" else "http://127.0.0.1:1")
    frame = Frame(program.address, "app", 8, None, None, None, None, False, str(program.path))
    frames: tuple[Any, ...] = (frame,) if case == "names are recorded" else ()
    path = program.record(tmp_path / "run.rtrec", frames=frames)
    if case != "all is at hand":
        program.path.unlink()
    read(path, Sources(ask_debuginfod=True))
    assert not (tmp_path / "bin" / "asked").exists()
