"""The way reports read: colour only where it is wanted, the program's own frame with its source, equal bad frees once."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_up import frame
from test_cigate import run
from test_sarif import bad_free

from frida_rtetrack import progress
from frida_rtetrack.reporters import colour, text
from frida_rtetrack.reporters.console import ConsoleReporter
from frida_rtetrack.reporters.tone import Line, Tone, tone_of
from frida_rtetrack.symbols import source
from frida_rtetrack.symbols.names import Stack
from frida_rtetrack.symbols.own import own_frame
from frida_rtetrack.symbols.symbolizer import Frame
from frida_rtetrack.target.target import Ending


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program's file, written after its sources."""
    path = tmp_path / "app"
    path.write_bytes(b"\x7fELF")
    os.utime(path, (2_000_000_000, 2_000_000_000))
    source._lines.cache_clear()
    source._written_ns.cache_clear()
    return path


def at(file: Path | str, line: int, program: Path) -> Frame:
    return frame("flow_new", file=str(file), line=line, module_path=str(program))


# ---- the program's own frame


def test_the_programs_innermost_own_frame_catches_the_eye_and_dpdks_and_libcs_step_aside() -> None:
    frames = (
        frame("rte_zmalloc", "librte_eal.so.23"),
        frame("flow_new"),
        frame("main"),
        frame("__libc_start_call_main", "libc.so.6"),
        frame("_start"),
    )
    tones = [tone_of(line) for line in text.stack(Stack(frames, None))]
    assert tones == [Tone.ASIDE, Tone.OWN, Tone.PLAIN, Tone.ASIDE, Tone.ASIDE]
    linked_in = Stack((frame("rte_malloc_socket"), frame("flow_new"), frame("main")), None)
    assert own_frame(linked_in) == frame("flow_new")
    assert own_frame(Stack(frames[:1], None)) == frames[0] and own_frame(None) is None


def test_the_source_line_stands_below_the_own_frame(tmp_path: Path, program: Path) -> None:
    file = tmp_path / "flow.c"
    file.write_text("int x;\n\tflow = rte_malloc(\x1b[31m64);\n")
    lines = list(text.stack(Stack((at(file, 2, program), at(file, 1, program)), None)))
    assert [tone_of(line) for line in lines] == [Tone.OWN, Tone.SOURCE, Tone.PLAIN]
    assert colour.painted(lines[1:2], io.StringIO()).strip() == r"flow = rte_malloc(\x1b[31m64);"


def test_a_source_that_is_no_plain_file_or_may_read_otherwise_now_is_not_shown(tmp_path: Path, program: Path) -> None:
    good = tmp_path / "good.c"
    good.write_text("int main(void)\n" + "x" * 1000)
    assert source.line_of(at(good, 1, program)) == "int main(void)"
    assert len(source.line_of(at(good, 2, program)) or "") == source.SHOWN_AT_MOST
    os.mkfifo(tmp_path / "fifo.c")
    (tmp_path / "link.c").symlink_to(good)
    (tmp_path / "folder.c").mkdir()
    (tmp_path / "secret").write_text("word")
    newer = tmp_path / "newer.c"
    newer.write_text("int other;")
    os.utime(newer, (2_100_000_000, 2_100_000_000))
    refused = ["fifo.c", "link.c", "folder.c", "secret", "newer.c", "none.c", "zero\0.c"]
    assert [source.line_of(at(tmp_path / name, 1, program)) for name in refused] == [None] * len(refused)
    for path in ("/dev/zero", "good.c", "/dev/tty.c", ""):
        assert source.line_of(at(path, 1, program)) is None
    assert source.line_of(at(good, 9, program)) is None
    assert source.line_of(at(good, 1, tmp_path / "gone")) is None
    if os.geteuid() == 0:
        private = tmp_path / "private.c"
        private.write_text("int password;")
        private.chmod(0o600)
        assert source.line_of(at(private, 1, program)) is None


# ---- colour


def test_what_is_piped_is_text_and_always_and_never_are_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["plain \x1b[2J", Line("  wrong", Tone.WRONG)]
    assert colour.painted(lines, io.StringIO()) == "plain \\x1b[2J\n  wrong\n"
    monkeypatch.setattr(colour.Colours, "when", "always")
    assert colour.painted(lines, io.StringIO()) == "plain \\x1b[2J\n  \x1b[1;31mwrong\x1b[0m\n"


TERMINAL = """
import os, sys
from frida_rtetrack.reporters.colour import painted, wanted
from frida_rtetrack.reporters.tone import Line, Tone
terminal = open(os.openpty()[1], "w")
print(wanted(terminal))
"""


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, "True"), ({"TERM": "xterm", "NO_COLOR": "1"}, "False"), ({"TERM": "dumb"}, "False")],
)
def test_a_terminal_has_colour_unless_it_cannot_or_the_user_wants_none(
    environment: dict[str, str], coloured: str
) -> None:
    bare = {name: value for name, value in os.environ.items() if name not in ("TERM", "NO_COLOR", "FORCE_COLOR")}
    ran = subprocess.run([sys.executable, "-c", TERMINAL], env=bare | environment, capture_output=True, text=True)
    assert ran.stdout.strip() == coloured, ran.stderr


# ---- equal bad frees


def test_equal_bad_frees_are_told_once_with_a_count_and_the_json_keeps_all(capsys: pytest.CaptureFixture[str]) -> None:
    equal = [bad_free(number) for number in range(1, 13)]
    other = replace(bad_free(13), site=("other",))  # type: ignore[arg-type]
    found = run(bad_frees=(*equal, other))
    lines = list(text.summary(found))
    assert sum("free of address" in line for line in lines) == 2
    assert "    ... 11 more times, the last 11.0 s later" in lines
    assert not any("and" in line and "more" in line and "..." in line and "times" not in line for line in lines)
    assert len(found.as_json()["bad_frees"]) == 13
    reporter = ConsoleReporter(quiet=True)
    for report in found.bad_frees:
        reporter.bad_free(report)
    reporter.ended(Ending(0, None, "exited"))
    told = capsys.readouterr().err
    assert told.count("This free:") == 2
    assert "bad free 1 again, with the same stacks: 2 times until now" in told
    assert "bad free 1 again, with the same stacks: 10 times until now" in told
    assert "bad free 1: ... 11 more times, the last 11.0 s later" in told


# ---- progress


SLOW = """
import time
from frida_rtetrack.progress import following
from frida_rtetrack.reporters import bars
bars.AFTER_SECONDS = 0.1
with bars.shown():
    for _ in following("looking around", range(20), 20):
        time.sleep(0.02)
    for _ in following("quick work", range(3), 3):
        pass
print("done")
"""


def run_slow_work(stderr: int) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", SLOW],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ | {"TERM": "xterm"},
    )
    assert ran.stdout == "done\n"
    return ran.stderr or ""


def test_what_takes_long_has_a_bar_on_a_terminal_and_nothing_in_a_pipe() -> None:
    assert run_slow_work(subprocess.PIPE) == ""
    master, slave = os.openpty()
    run_slow_work(slave)
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert "looking around" in shown and "%" in shown and "quick work" not in shown
    assert "\x1b[?25l" not in shown  # the cursor stays: nobody would give it back where a signal ends us


def test_how_far_it_is_is_told_to_who_listens_also_where_it_ends_early() -> None:
    told: list[tuple[str, int, int]] = []
    with progress.told_to(lambda *what: told.append(what)):
        for item in progress.following("work", [3, 4, 5], 12, lambda item: item):
            if item == 4:
                break
    assert told == [("work", 3, 12), ("work", 12, 12)]
    progress.tell("nobody", 1, 2)
