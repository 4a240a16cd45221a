"""What several kinds of tests need: the built test programs, and the engines."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

from frida_rtetrack.host import ENGINES
from frida_rtetrack.target.engine import COMPILER_VARIABLE

settings.register_profile("any machine", deadline=None)  # a busy one is slow
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "build" / "programs"


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder with the programs of tests/programs, built."""
    if shutil.which("pkg-config") is None or subprocess.run(["pkg-config", "--exists", "libdpdk"]).returncode != 0:
        pytest.skip("DPDK's headers are not installed (Debian: libdpdk-dev, pkg-config)")
    command = ["make", "-s", "-C", ROOT / "tests" / "programs", f"OUT={PROGRAMS}"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    return PROGRAMS


TINYCC = "native by TinyCC"
EACH_ENGINE = [engine for engine in ENGINES if engine != "auto"]


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each engine in turn; in tests marked `by_both_compilers` the native one also as TinyCC compiles it."""
    if request.param == TINYCC:
        monkeypatch.setenv(COMPILER_VARIABLE, "tinycc")
        return "native"
    return str(request.param)


@pytest.fixture(autouse=True)
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The native engine as it was compiled ahead, unless a test marked `by_both_compilers` is at its second turn."""
    if getattr(request, "param", None) == TINYCC:
        monkeypatch.setenv(COMPILER_VARIABLE, "tinycc")


def parametrizes(metafunc: pytest.Metafunc, name: str) -> bool:
    """Whether the test gives the values of `name` itself."""
    return any(name in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives the tests that take an engine each in turn, and those marked `by_both_compilers` one turn more."""
    twice = metafunc.definition.get_closest_marker("by_both_compilers") is not None
    if "engine" in metafunc.fixturenames and not parametrizes(metafunc, "engine"):
        metafunc.parametrize("engine", [*EACH_ENGINE, *([TINYCC] if twice else [])], indirect=True)
    elif twice:
        metafunc.parametrize("compiler", ["native", TINYCC], indirect=True)
