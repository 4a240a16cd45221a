"""Every integration test runs real programs; whatever it starts is gone when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tracked import Runner


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
