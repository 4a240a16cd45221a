"""What several kinds of tests need: the built test programs, and the engines."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from frida_rtetrack.host import ENGINES

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


@pytest.fixture(params=[engine for engine in ENGINES if engine != "auto"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    return str(request.param)
