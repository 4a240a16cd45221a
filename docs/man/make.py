"""Makes the man pages in this folder from the commands' own help: `make man`, or `python docs/man/make.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from click_man.core import write_man_pages

from frida_rtetrack.commands.cli import cli

DATE = "2026"
"""No day: a page that says the same is the same."""


def make(folder: Path) -> None:
    """Writes rtetrack-frida.1 and a page a command into `folder`."""
    for command in (cli, *cli.commands.values()):
        command.short_help = " ".join((command.help or "").split("\n\n")[0].split()).rstrip(".")  # else it is cut
    version = next(line.split('"')[1] for line in PYPROJECT.read_text().splitlines() if line.startswith("version"))
    write_man_pages("rtetrack-frida", cli, version=version, target_dir=str(folder), date=DATE)


PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
