"""What comes with the command: its man pages, and the completion of its words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(sys.executable).with_name("rtetrack-frida")


def test_the_man_pages_say_what_the_commands_help_says(tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, ROOT / "docs/man/make.py", tmp_path], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    pages = {page.name: page.read_text() for page in tmp_path.glob("*.1")}
    assert {"rtetrack-frida.1", "rtetrack-frida-spawn.1", "rtetrack-frida-attach.1"} <= pages.keys()
    assert pages == {page.name: page.read_text() for page in (ROOT / "docs/man").glob("*.1")}, "`make man` renews them"


@pytest.mark.parametrize(
    ("words", "completed"),
    [("sp", "spawn"), ("spawn --leak", "--leak-check"), ("table --by by", "bytes"), ("spawn --engine na", "native")],
)
def test_the_shell_completes_commands_options_and_values(words: str, completed: str) -> None:
    line = f"rtetrack-frida {words}"
    asked = {"_RTETRACK_FRIDA_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words.split()))}
    answer = subprocess.run([COMMAND], env=os.environ | asked, capture_output=True, text=True)
    assert f"plain,{completed}" in answer.stdout.splitlines(), answer
