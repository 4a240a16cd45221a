"""What the command says while it comes into a program."""

from __future__ import annotations

import re
import time

import pytest

from frida_rtetrack.commands import progress
from frida_rtetrack.commands.progress import ProgressReporter


def test_a_second_of_it_is_told_from_then_on_each_step_once_and_again_where_it_lasts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert progress.FIRST_SECONDS < 1
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(progress, "AGAIN_SECONDS", 0.4)
    monkeypatch.setattr(progress, "LOOK_SECONDS", 0.01)
    reporter = ProgressReporter()
    reporter.step("coming")
    time.sleep(0.2)
    reporter.step("reading")
    time.sleep(0.7)
    reporter.arrived()
    reporter.step("late")
    told = capsys.readouterr().err
    assert re.findall(r"^rtetrack-frida: (\w+) \(.*\)$", told, re.MULTILINE) == ["coming", "reading", "reading"]


def test_what_is_quick_or_quiet_says_nothing_of_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        reporter = ProgressReporter(quiet=quiet)
        reporter.step("coming")
        time.sleep(1.1 if quiet else 0.1)
        reporter.arrived()
    assert capsys.readouterr().err == ""
