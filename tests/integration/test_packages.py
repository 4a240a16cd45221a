"""The package as it is built and installed: a wheel with the engine in it, and an sdist where there is no compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from tracked import Runner

from frida_rtetrack.reporters.page.document import SCRIPTS

ROOT = Path(__file__).resolve().parents[2]
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
NO_DEPENDENCIES = ("--no-deps", "--no-build-isolation")
TOOLS = ("sh", "env", "ldd", "ldconfig", "uname", "lsb_release")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows of, as a clone has them."""
    folder = tmp_path_factory.mktemp("package") / "source"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0")[:-1]:
        if (ROOT / name).exists() and not name.startswith(("tests/", "bench/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture
def without_compiler(tmp_path: Path) -> dict[str, str]:
    """An environment in which no compiler is found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        if (found := shutil.which(name)) is not None:
            (folder / name).symlink_to(found)
    return {name: value for name, value in os.environ.items() if name != "CC"} | {"PATH": str(folder)}


def install(package: Path, folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Installs it into an empty folder; returns an environment in which that is the package."""
    command = [*PIP, "install", *NO_DEPENDENCIES, "--target", str(folder), str(package)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return environment | {"PYTHONPATH": str(folder)}


def tracked_with(environment: dict[str, str], folder: Path, runner: Runner) -> dict[str, object]:
    """What the summary of a run with the installed package says of its engine."""
    summary = folder / "summary.json"
    where = "import frida_rtetrack; print(frida_rtetrack.__file__)"
    found = subprocess.run([sys.executable, "-c", where], env=environment, capture_output=True, text=True, cwd=folder)
    assert found.stdout.startswith(str(folder)), found
    command = [sys.executable, "-m", "frida_rtetrack", "spawn", "--no-repl", "--dump-file", str(folder / "dump.csv")]
    words = ["--summary", str(summary), runner.program("realloc"), "--no-huge", "--no-pci", "--no-shconf", "-m", "256"]
    run = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, cwd=folder, timeout=120)
    assert "Traceback" not in run.stderr, run.stderr
    found_in_it: dict[str, object] = json.loads(summary.read_text())
    version = subprocess.run(
        [sys.executable, "-m", "frida_rtetrack", "--version"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert f"engine: native ({found_in_it['compiler']})" in version.stdout
    assert f"engine: native ({found_in_it['compiler']})" in run.stderr
    return found_in_it


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc here")
def test_a_wheel_brings_the_compiled_engine_to_a_machine_without_a_compiler(
    source: Path, without_compiler: dict[str, str], tmp_path: Path, runner: Runner
) -> None:
    command = [*PIP, "wheel", *NO_DEPENDENCIES, "--wheel-dir", str(tmp_path), str(source)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-linux_x86_64.whl") and "-py3-none-" in wheel.name
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if "/reporters/page/" in name}
    assert {name.rpartition("/")[2] for name in packed} >= {"page.html", "page.css", *SCRIPTS}
    environment = install(wheel, tmp_path / "installed", without_compiler)
    summary = tracked_with(environment, tmp_path / "installed", runner)
    assert str(summary["compiler"]).startswith("gcc ")
    assert summary["events"]["allocations"] > 0  # type: ignore[index]


def test_an_sdist_that_is_installed_without_a_compiler_uses_tinycc_and_says_so(
    source: Path, without_compiler: dict[str, str], tmp_path: Path, runner: Runner
) -> None:
    backend = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", backend, str(tmp_path)], cwd=source, capture_output=True, text=True, check=True
    )
    sdist = tmp_path / built.stdout.splitlines()[-1]
    environment = install(sdist, tmp_path / "installed", without_compiler)
    summary = tracked_with(environment, tmp_path / "installed", runner)
    assert summary["compiler"] == "TinyCC"
    assert summary["events"]["allocations"] > 0  # type: ignore[index]


def test_what_python_m_build_makes_works_in_an_empty_environment(source: Path, tmp_path: Path, runner: Runner) -> None:
    """The wheel, which is built from the sdist: so that has all that is needed, too."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr + built.stdout
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert packed >= {
        "docs/architecture.md",
        "docs/man/rtetrack-frida.1",
        "CHANGELOG.md",
        "LICENSE",
        "pytest_rtetrack.py",
    }
    home = tmp_path / "environment"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", wheel]
    installed = subprocess.run(pip, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr
    assert (home / "share/man/man1/rtetrack-frida-spawn.1").is_file()
    plugin = "from importlib.metadata import entry_points as e; print(e(group='pytest11')['rtetrack'].value)"
    told = subprocess.run([python, "-c", plugin], capture_output=True, text=True, cwd=tmp_path)
    assert told.stdout.strip() == "pytest_rtetrack", told.stderr
    recording, page = tmp_path / "run.rtrec", tmp_path / "run.html"
    frida = home / "bin" / "rtetrack-frida"
    options = ["--no-repl", "--dump-file", tmp_path / "dump.csv", "-o", recording, "--color", "always"]
    ran = subprocess.run(
        [frida, "spawn", *options, runner.program("leaky"), "lose"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 0 and "engine: native (gcc" in ran.stderr and "\x1b[1;33m#0  lose_some" in ran.stderr, (
        ran.stderr
    )
    assert subprocess.run([frida, "flamegraph", recording, "-o", page]).returncode == 0
    assert "lose_some" in page.read_text()
