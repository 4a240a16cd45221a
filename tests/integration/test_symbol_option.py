"""`--symbol`: what it leaves out is said and accuses nobody, and what cannot be right is an error."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

import pytest
from tracked import Runner

from frida_rtetrack.symbols.dpdk import NEEDED


def symbols(runner: Runner, name: str, functions: Sequence[str]) -> list[str]:
    """The options that say where `functions` are in the stripped program `name`, by its twin that is not stripped."""
    listed = subprocess.run(
        ["nm", runner.program(f"{name}-static")], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    found = dict((name, address) for address, name in re.findall(r"^([0-9a-f]+) [tT] (\w+)$", listed, re.MULTILINE))
    stripped = runner.program(f"{name}-stripped")
    return [f"--symbol={function}={stripped}+0x{found[function]}" for function in functions]


@pytest.mark.parametrize(
    "given",
    [("rte_malloc", "rte_free"), ("rte_free", "rte_malloc_socket", "rte_memzone_reserve")],
    ids=["two", "three"],
)
def test_functions_that_are_left_out_are_said_and_nobody_is_accused(runner: Runner, given: tuple[str, ...]) -> None:
    tracked = runner.run("memzones-stripped", options=symbols(runner, "memzones", given))
    assert tracked.wait() == 0
    assert tracked.summary["bad_frees"] == []
    (said,) = [line for line in tracked.stderr.splitlines() if "--symbol does not say" in line]
    listed = re.search(r"where (.*) are in", said)
    assert listed is not None
    assert listed[1].split(", ") == [name for name in NEEDED if name not in given]
    assert "no free is accused" in said


def test_with_all_of_them_a_bad_free_is_accused_and_what_is_not_in_the_program_can_be_said(runner: Runner) -> None:
    functions = [name for name in NEEDED if name != "rte_calloc_socket"]
    options = [*symbols(runner, "badfrees", functions), "--symbol=rte_calloc_socket=none"]
    tracked = runner.run("badfrees-stripped", "duplicate_field", options=options)
    assert "--symbol does not say" not in tracked.stderr
    assert [bad["kind"] for bad in tracked.summary["bad_frees"]] == ["duplicate"]


def test_without_any_the_error_names_all_that_are_wanted(runner: Runner) -> None:
    tracked = runner.run("badfrees-stripped", "clean")
    assert tracked.wait() == 125
    assert ", ".join(NEEDED) in tracked.stderr
    program = runner.start("/bin/sleep", 60)
    attached = runner.attach(program.pid, wait=False)
    assert attached.wait() == 125
    assert ", ".join(NEEDED) in attached.stderr


@pytest.mark.parametrize("where", ["0x7fffffff", "0x10"], ids=["outside", "no code"])
def test_an_offset_that_leads_to_no_code_starts_nothing(runner: Runner, where: str) -> None:
    tracked = runner.run("waiter", options=["--symbol", f"rte_free=waiter+{where}"])
    assert tracked.wait() == 125
    assert tracked.stderr.count(f"--symbol rte_free=waiter+{where} leads to no code of that module") == 1
    assert "ready" not in tracked.stdout
    program = runner.start_ready("waiter")
    attached = runner.attach(program.pid, options=["--symbol", f"rte_free=waiter+{where}"], wait=False)
    assert attached.wait() == 125
    assert "leads to no code" in attached.stderr
    assert program.ask("say alive", "^said alive$")


def test_a_module_that_never_comes_is_an_error(runner: Runner) -> None:
    options = ["--symbol", "rte_free=libnever.so+0x1000"]
    tracked = runner.run("demo", options=options)
    assert tracked.wait() == 125
    assert "--symbol names libnever.so, which the program never loaded." in tracked.stderr
    assert "demo: done" in tracked.stdout
    program = runner.start_ready("waiter")
    attached = runner.attach(program.pid, options=options, wait=False)
    assert attached.wait() == 125
    assert "libnever.so" in attached.stderr
    assert program.ask("say alive", "^said alive$")
