"""The native engine as the system's compiler made it: what the agent and the unwinder rely on, read from the ELF."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from frida_rtetrack.native import build
from frida_rtetrack.target import engine

PACKAGE = Path(engine.__file__).parents[1]
PAGE = 4096
PROLOGUE = re.compile(
    rb"\x55(?:[\x48\x49\x4c\x4d][\x89\x8b].|[\x31\x89\x8b].|\x45\x31.|\x41\x89.){0,6}?\x48\x89\xe5", re.DOTALL
)
"""push %rbp; moves between registers; mov %rsp, %rbp"""
VECTOR_REGISTER = re.compile(r"%[xyz]mm\d|%st\b")
C_LIBRARY = {"memcpy", "memmove", "memset", "strlen"}
"""What a compiler may call for what the source says in other words."""

pytestmark = pytest.mark.skipif(build.find_compiler() is None, reason="there is no C compiler here")


@pytest.fixture(scope="module", params=["gcc", "clang"])
def elf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = next((found for name in (request.param, f"{request.param}-14") if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip(f"no {request.param} here")
    output = tmp_path_factory.mktemp("engine") / build.ENGINE
    build.build_engine(compiler, output)
    return output


@pytest.fixture(scope="module")
def symbols(elf: Path) -> dict[str, tuple[int, int, bool]]:
    """Name -> (address, size, defined)."""
    with elf.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        return {
            symbol.name: (symbol["st_value"], symbol["st_size"], symbol["st_shndx"] != "SHN_UNDEF")
            for symbol in table.iter_symbols()
            if symbol.name
        }


def hooks_in_the_source() -> list[str]:
    source = (PACKAGE / "native" / "hooks.c").read_text()
    macro = r"^(?:ALLOCATING|RESIZING|FREEING|RESERVING)_HOOK\((\w+)"
    return [
        "hook_" + name
        for name in re.findall(rf"{macro}|^int hook_(\w+)\(", source, re.MULTILINE)
        for name in name
        if name
    ]


def test_the_hooks_lie_in_the_order_of_the_source_between_the_first_and_the_one_after_the_last(
    symbols: dict[str, tuple[int, int, bool]],
) -> None:
    """By this the engine knows a return address into a hook from any other."""
    names = hooks_in_the_source()
    assert len(names) == 16
    addresses = [symbols[name][0] for name in names]
    assert addresses == sorted(addresses)
    assert names[0] == "hook_rte_malloc" and symbols["hooks_uncounted"][0] > addresses[-1]
    first, last = addresses[0], symbols["hooks_uncounted"][0]
    for name, (address, size, defined) in symbols.items():
        if defined and size and not name.startswith("hook_"):
            assert not first <= address < last, f"{name} lies between the hooks"


def test_every_hook_keeps_its_frame_by_rbp(elf: Path, symbols: dict[str, tuple[int, int, bool]]) -> None:
    with elf.open("rb") as file:
        text = ELFFile(file).get_section_by_name(".text")
        code, base = text.data(), text["sh_addr"]
    for name in hooks_in_the_source():
        assert PROLOGUE.match(code, symbols[name][0] - base), name


def test_no_vector_register_is_touched(elf: Path) -> None:
    listing = subprocess.run(["objdump", "-d", elf], capture_output=True, text=True, check=True).stdout
    assert "hook_rte_free" in listing
    assert not [line for line in listing.splitlines() if VECTOR_REGISTER.search(line)]


def test_nothing_is_missing_that_the_agent_does_not_hand_in(symbols: dict[str, tuple[int, int, bool]]) -> None:
    script = (PACKAGE / "agent" / "code.js").read_text()
    handed_in = set(re.findall(r"'(\w+)'", script[script.index("const IMPORTS") :].partition("]")[0]))
    missing = {name for name, (_, _, defined) in symbols.items() if not defined}
    assert {name for name in missing if not name.startswith("gum_")} <= handed_in | C_LIBRARY


def test_what_a_forked_child_must_not_have_lies_on_pages_of_its_own(symbols: dict[str, tuple[int, int, bool]]) -> None:
    script = (PACKAGE / "agent" / "code.js").read_text()
    states = re.findall(r"(\w+): \{", re.search(r"const STATES = \{(.*?)\};", script, re.DOTALL)[1])  # type: ignore[index]
    assert "agent" in states and "originals" in states
    for name in states:
        assert symbols[name][0] % PAGE == 0, name
    wiped = range(symbols["agent"][0], symbols["agent"][0] + symbols["agent"][1])
    assert len(wiped) == PAGE  # what agent.js advises
    assert not [name for name, (at, _, defined) in symbols.items() if defined and name != "agent" and at in wiped]


def test_the_one_that_was_built_is_used_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = installed(tmp_path, monkeypatch)
    build.build_engine(shutil.which("gcc") or shutil.which("cc") or "clang", folder / "native" / build.ENGINE)
    monkeypatch.delenv(engine.COMPILER_VARIABLE, raising=False)
    assert engine.compiled_engine() is not None
    assert re.fullmatch(r"\w+ \d+\.\d+ -O2", engine.native_compiler())
    monkeypatch.setenv(engine.COMPILER_VARIABLE, "tinycc")
    assert engine.compiled_engine() is None
    assert engine.native_compiler() == "TinyCC"


@pytest.mark.parametrize("fault", ["missing", "stale", "truncated", "another machine", "no ELF"])
def test_one_that_does_not_fit_is_not_used(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = installed(tmp_path, monkeypatch)
    monkeypatch.delenv(engine.COMPILER_VARIABLE, raising=False)
    elf = folder / "native" / build.ENGINE
    build.build_engine(shutil.which("gcc") or shutil.which("cc") or "clang", elf)
    assert engine.compiled_engine() is not None
    data = bytearray(elf.read_bytes())
    if fault == "missing":
        elf.unlink()
    elif fault == "stale":
        source = folder / "native" / "ring.c"
        source.write_text(source.read_text() + "\n/* changed since */\n")
    else:
        if fault == "another machine":
            data[18] = 183  # EM_AARCH64
        elf.write_bytes({"truncated": data[:-100], "no ELF": b"#" + data[1:]}.get(fault, data))
    assert engine.compiled_engine() is None
    assert engine.native_compiler() == "TinyCC"


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's native/ in a folder of its own, which is looked at from now on."""
    shutil.copytree(PACKAGE / "native", folder / "native", ignore=shutil.ignore_patterns("*.so"))
    monkeypatch.setattr(engine, "_PACKAGE", folder)
    monkeypatch.setattr(build, "HERE", folder / "native")
    return folder


def test_without_a_compiler_the_build_goes_on_and_says_what_that_means(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CC"} | {"PATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, PACKAGE / "native" / "build.py", tmp_path], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "TinyCC" in run.stderr and "Traceback" not in run.stderr
    assert not list(tmp_path.iterdir())
