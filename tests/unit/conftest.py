"""The tests of the tracking map and of its table run twice: with numpy alone, and with the compiled kernel."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from frida_rtetrack.tracking import mapkernel

settings.register_profile("any machine", deadline=None)  # a busy one is not wrong
settings.load_profile("any machine")

BOTH_WAYS = ("test_tracking", "test_blocktable")
SOURCE = mapkernel.LIBRARY.with_suffix(".c")

# How long an example takes says more of the machine's load than of the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Both ways for each test of these modules."""
    if metafunc.module.__name__.rpartition(".")[2] in BOTH_WAYS:
        metafunc.fixturenames.append("map_engine")
        metafunc.parametrize("map_engine", ["numpy", "kernel"], indirect=True, scope="module")


@pytest.fixture(scope="session")
def map_kernel(tmp_path_factory: pytest.TempPathFactory) -> mapkernel.Kernel:
    """The kernel, built from its source as it is now."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    library: Path = tmp_path_factory.mktemp("kernel") / "map_kernel.so"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, "-O2", *warnings, "-shared", "-fPIC", "-o", library, SOURCE], check=True, timeout=120)
    return mapkernel.Kernel(library)


@pytest.fixture(scope="module")
def map_engine(request: pytest.FixtureRequest) -> Iterator[str]:
    """Maps and tables that a test makes apply events in this way."""
    found = request.getfixturevalue("map_kernel") if request.param == "kernel" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapkernel, "load", lambda: found)
        yield request.param
