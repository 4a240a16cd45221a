"""The house: which package may use which, who knows Frida, who prints. Every import is read, wherever in a file it is."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import frida_rtetrack

PACKAGE = Path(frida_rtetrack.__file__).parent
LINES_AT_MOST = 520

STOREYS = (
    ("errors", "native", "newfile", "options", "progress"),
    ("stream",),
    ("symbols", "target"),
    ("tracking",),
    ("observer",),
    ("reachability",),
    ("reports",),
    ("recording",),
    ("session",),
    ("inspection",),
    ("control", "questions"),
    ("host", "reporters"),
    ("commands",),
    ("__init__", "__main__"),
)
"""From the ground up. Who lives on one storey does not know the other; who lives below does not know who lives above."""

STOREY = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}
KNOW_FRIDA = ("host", "target")
PRINT = ("reporters", "commands")
PROGRAMS_OF_THEIR_OWN = (
    "native.build",
    "target.arrival.helper",
    "target.execgate",
    "target.registers",
    "target.confinement",
)
"""Run as `python FILE` too: what they print there is read by the one who ran them."""


def module_name(path: Path) -> str:
    """`target.process`, from the package's folder on."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    return module.partition(".")[0]


MODULES = {module_name(path): ast.parse(path.read_text(), path) for path in sorted(PACKAGE.rglob("*.py"))}


def imported(tree: ast.AST) -> Iterator[str]:
    """The full names of what is imported anywhere in a file: in functions and under TYPE_CHECKING as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports are not used here"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def neighbours(tree: ast.AST) -> set[str]:
    """The modules of this package that a file imports."""
    found = set()
    for name in imported(tree):
        if name.partition(".")[0] != PACKAGE.name:
            continue
        name = name.removeprefix(PACKAGE.name).removeprefix(".")
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found.add(name or "__init__")
    return found


def prints(tree: ast.AST) -> Iterator[int]:
    """The lines that print, or take hold of a standard stream."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == "print":
            yield node.lineno
        elif isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr", "__stdout__", "__stderr__"):
            if isinstance(node.value, ast.Name) and node.value.id == "sys":
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "sys":
            yield from (node.lineno for alias in node.names if alias.name in ("stdout", "stderr"))


def test_every_file_has_its_storey() -> None:
    assert {room(module) for module in MODULES} == set(STOREY)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards_only(module: str) -> None:
    upwards = {
        other
        for other in neighbours(MODULES[module])
        if room(other) != room(module) and STOREY[room(other)] >= STOREY[room(module)]
    }
    assert not upwards, f"{module} imports {', '.join(sorted(upwards))}"


def test_no_imports_in_a_circle() -> None:
    graphlib.TopologicalSorter({module: neighbours(tree) for module, tree in MODULES.items()}).prepare()


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) not in KNOW_FRIDA])
def test_frida_is_known_to_the_host_and_the_target_only(module: str) -> None:
    assert not [name for name in imported(MODULES[module]) if name.partition(".")[0] in ("frida", "_frida")]


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) not in PRINT and m not in PROGRAMS_OF_THEIR_OWN])
def test_nothing_below_commands_and_reporters_prints(module: str) -> None:
    assert not list(prints(MODULES[module]))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_a_file_is_read_in_some_minutes(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_AT_MOST
