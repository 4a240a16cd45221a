"""The worked examples of docs/ say what really comes out: each command in a ```console block is run, in the page's order.

Below a command stand lines of its output, in their order; `...` stands for any that are left out. Numbers, addresses and
folders are not compared, and neither is which stream it was. `python tests/integration/test_worked_examples.py PAGE.md`
prints a page with what its commands print now.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md") if "```console" in page.read_text())
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FOLDER = re.compile(r"(?<!\S)/[\w./+-]*/(?=[\w.+-]+)")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d[\d,.]*")
_DURATION = re.compile(r"(less than )?N (us|ms|s|min)\b")
_BAR = re.compile("[▁▂▃▄▅▆▇█ ]{2,}")


@dataclass(frozen=True)
class Shown:
    """A command of a page, and the lines of output that the page shows of it."""

    command: str
    lines: tuple[str, ...]


def shown_in(page: str) -> list[Shown]:
    found = []
    for block in _BLOCK.findall(page):
        for piece in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = piece.splitlines()
            found.append(Shown(command, tuple(lines)))
    return found


def run(command: str, folder: Path) -> list[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    environment["RTE_MALLOC_TRACK_DUMP_FILE"] = str(folder / "dump.csv")
    said = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=120, encoding="utf-8", errors="replace",
    )  # fmt: skip
    return said.stdout.splitlines()


def comparable(line: str) -> str:
    """A line without what differs from run to run and from machine to machine."""
    return _BAR.sub(" ", _DURATION.sub("a while", _NUMBER.sub("N", _FOLDER.sub("", line)))).strip()


def built_examples(folder: Path) -> None:
    subprocess.run(["make", "-s", "-C", DOCS / "examples", f"OUT={folder}"], check=True)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_what_its_commands_print(page: str, tmp_path: Path) -> None:
    built_examples(tmp_path)
    so_far = ""
    for shown in shown_in((DOCS / page).read_text()):
        printed = run(shown.command, tmp_path)
        so_far += "\n".join(["$ " + shown.command, *printed, ""])
        left = iter([comparable(line) for line in printed])
        for line in shown.lines:
            if line.strip() != "...":
                assert comparable(line) in left, f"{shown.command}\ndoes not print: {line}\nbut:\n{so_far}"


def refreshed(page: str, folder: Path) -> str:
    """The page with what its commands print now, whole."""

    def output_of(block: re.Match[str]) -> str:
        commands = [piece.splitlines()[0] for piece in re.split(r"^\$ ", block[1], flags=re.MULTILINE)[1:]]
        lines = [line for command in commands for line in (f"$ {command}", *run(command, folder))]
        return "```console\n" + "\n".join(_FOLDER.sub("", line) for line in lines) + "\n```"

    return _BLOCK.sub(output_of, page)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        built_examples(Path(place))
        print(refreshed(Path(sys.argv[1]).read_text(), Path(place)), end="")
