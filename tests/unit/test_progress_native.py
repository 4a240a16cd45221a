"""Whether the program's threads have moved on, as the agent asks the kernel (native/progress.c); built with the sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from sanitized import built

SOURCE = Path(__file__).resolve().parents[1] / "native" / "progress_check.c"


@pytest.fixture(scope="module")
def progress_check(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(SOURCE, tmp_path_factory.mktemp("progress"))


def ask(program: Path, *, spinning: int, sleeping: int, own_ms: int, limit_ms: int) -> tuple[int, int]:
    """How many have not moved on, and after how many ms that was said."""
    words = map(str, (spinning, sleeping, own_ms, limit_ms))
    output = subprocess.run([program, *words], capture_output=True, text=True, check=True, timeout=60).stdout
    left, took = output.split()
    return int(left), int(took)


def test_who_runs_is_waited_for_until_it_has_had_its_own_time(progress_check: Path) -> None:
    left, took = ask(progress_check, spinning=3, sleeping=0, own_ms=40, limit_ms=30_000)
    assert left == 0
    assert took >= 40


def test_who_waits_is_not_waited_for_whatever_it_is_called(progress_check: Path) -> None:
    assert ask(progress_check, spinning=0, sleeping=20, own_ms=1, limit_ms=30_000)[0] == 0


def test_who_does_not_move_on_is_told_when_the_limit_is_reached(progress_check: Path) -> None:
    left, took = ask(progress_check, spinning=2, sleeping=3, own_ms=600_000, limit_ms=200)
    assert left == 2
    assert took >= 200
