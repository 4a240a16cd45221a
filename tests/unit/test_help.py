"""What a user finds in `--help`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from frida_rtetrack.commands.cli import cli
from frida_rtetrack.commands.prompt import COMMANDS


def help_of(*words: str) -> str:
    answer = CliRunner().invoke(cli, [*words, "--help"])
    assert answer.exit_code == 0
    return answer.output


@pytest.mark.parametrize("command", ["spawn", "attach"])
def test_every_option_has_its_place_and_examples_variables_and_commands_follow(command: str) -> None:
    told = help_of(command)
    titles = re.findall(r"^(?:  )?([A-Z][a-zA-Z ]*):$", told, re.MULTILINE)
    assert titles == [
        *("How it is tracked", "What is written", "What is checked at the end", "What is shown", "Others"),
        *("Examples", "Variables", "Signals", "At the prompt"),
    ]
    others = told[told.index("Others:") : told.index("Examples:")]
    assert re.findall(r"--\S+", others) == ["--help"]
    assert f"rtetrack-frida {command} 4711" in told or "spawn ./app --no-huge -m 512" in told
    assert "RTE_MALLOC_TRACK_DUMP_FILE" in told
    for name in COMMANDS:
        assert re.search(rf"^    {name}\b", told, re.MULTILINE), name


def test_the_first_help_has_examples_and_tells_of_completion() -> None:
    told = help_of()
    assert 'eval "$(_RTETRACK_FRIDA_COMPLETE=bash_source rtetrack-frida)"' in told
    assert "rtetrack-frida attach 4711" in told


def test_the_shell_is_told_what_completes_a_word() -> None:
    asked = subprocess.run(
        [sys.executable, "-c", "from frida_rtetrack.commands.cli import cli; cli(prog_name='rtetrack-frida')"],
        env=os.environ | {
            "_RTETRACK_FRIDA_COMPLETE": "bash_complete",
            "COMP_WORDS": "rtetrack-frida spawn --ver",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert asked.stdout == "plain,--verify\n"


def test_every_option_of_spawn_and_attach_is_in_the_reference() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
    options = {
        name
        for command in ("spawn", "attach")
        for option in cli.commands[command].params
        if isinstance(option, click.Option)
        for name in (option.secondary_opts or option.opts)  # of --verify/--no-verify the one that is not the default
        if name.startswith("--")
    }
    assert sorted(name for name in options if name not in reference and name != "--output") == []


def test_the_pages_that_the_readme_and_the_pages_lead_to_are_there() -> None:
    root = Path(__file__).parents[2]
    for page in (root / "README.md", root / "CONTRIBUTING.md", *(root / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
