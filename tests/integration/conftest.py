"""Every integration test runs real programs; whatever it starts is gone when it ends."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked import Runner


def pytest_configure(config: pytest.Config) -> None:
    """Programs with the same --file-prefix get in each other's way: those of this worker have a place of their own."""
    folder = tempfile.mkdtemp(prefix="rtetrack-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["RUNTIME_DIRECTORY"] = folder  # eal_create_runtime_dir in DPDK


ALONE = {"test_arrival", "test_attach_load", "test_leaving", "test_stress", "test_testpmd"}
"""Files whose tests all load the machine, or count that nothing stands still. In others, single tests are marked."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n N --dist loadgroup` each file is run by one worker, and all that take hugepages by the same one, first:
    they take longest."""
    with_hugepages = {item.path for item in items if "hugepages" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in with_hugepages)
    for item in items:
        if item.path.stem in ALONE:
            item.add_marker(pytest.mark.alone)
        item.add_marker(pytest.mark.xdist_group("hugepages" if item.path in with_hugepages else item.path.stem))


@pytest.fixture
def runner(tmp_path: Path, programs: Path) -> Iterator[Runner]:
    """Starts processes for this test."""
    runner = Runner(tmp_path, programs)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def module_runner(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[Runner]:
    """Starts processes that the tests of a module share."""
    runner = Runner(tmp_path_factory.mktemp("shared"), programs)
    yield runner
    runner.close()


HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")


@pytest.fixture(scope="module")
def hugepages() -> Iterator[None]:
    """At least 128 free hugepages and a mount for them; given back afterwards."""
    if os.geteuid() != 0:
        pytest.skip("hugepages need root")
    before = HUGEPAGES.read_text()
    try:
        HUGEPAGES.write_text(str(max(int(before), 160)))
    except OSError as error:
        pytest.skip(f"no hugepages can be had here: {error}")
    mounted = not os.path.ismount("/dev/hugepages")
    if mounted:
        os.makedirs("/dev/hugepages", exist_ok=True)
        subprocess.run(["mount", "-t", "hugetlbfs", "nodev", "/dev/hugepages"], check=True)
    free = int(re.search(r"HugePages_Free:\s+(\d+)", Path("/proc/meminfo").read_text())[1])  # type: ignore[index]
    if free < 64:
        pytest.skip(f"only {free} hugepages are free")
    yield
    if mounted:
        subprocess.run(["umount", "/dev/hugepages"])
    HUGEPAGES.write_text(before)
