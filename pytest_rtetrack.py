"""A pytest plugin: tests that run programs with DPDK under rtetrack-frida, and fail on what it finds.

>>> @pytest.mark.limit_dpdk_memory("64 MB")
... @pytest.mark.check_dpdk_leaks("lost")
... def test_forwarding(dpdk_tracked):
...     run = dpdk_tracked(["build/app", "--no-huge", "-m", "256"])
...     assert run.exit_status == 0

Beside the package and not in it, so that a pytest run that does not use it loads neither Frida nor numpy.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from frida_rtetrack import Host, Options, Summary
    from frida_rtetrack.reports.cigate import Gate

Argv = Sequence[str | os.PathLike[str]]
TIMEOUT_SECONDS = 60.0
_GATE = pytest.StashKey["Gate"]()
_RUNS = pytest.StashKey[list["TrackedRun"]]()


@dataclass(frozen=True)
class TrackedRun:
    """A program that ran tracked, and has ended."""

    host: Host
    """For further questions."""
    summary: Summary
    """Everything that was found."""
    exit_status: int | None
    """None where a signal ended it."""
    signal: int | None


class DpdkTracked:
    """The fixture `dpdk_tracked`: runs programs, each with what the test's markers and the configuration ask for."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node
        self._leak_check = frozenset(node.stash[_GATE].leak_check)

    def __call__(self, argv: Argv, *, options: Options | None = None, timeout: float = TIMEOUT_SECONDS) -> TrackedRun:
        """Runs `argv` to its end. The test fails where that takes more than `timeout` seconds."""
        with self.start(argv, options=options) as host:
            if not host.wait(timeout):
                host.kill()
                pytest.fail(f"{os.path.basename(argv[0])} did not end within {timeout:g} seconds.", pytrace=False)
        return self._node.stash[_RUNS][-1]

    @contextlib.contextmanager
    def start(self, argv: Argv, *, options: Options | None = None) -> Iterator[Host]:
        """Runs `argv` while the block runs, and waits for its end after it."""
        from frida_rtetrack import Host, Options

        options = options or Options(dump_on_bad_free=False)
        with Host.spawn(list(argv), replace(options, leak_check=options.leak_check | self._leak_check)) as host:
            yield host
            ending = host.wait_for_exit()
            run = TrackedRun(host, host.summary(), ending.exit_status, ending.signal)
        self._node.stash[_RUNS].append(run)


@pytest.fixture
def dpdk_tracked(request: pytest.FixtureRequest) -> DpdkTracked:
    """Runs programs tracked: `run = dpdk_tracked(["./app", "--no-huge"])`. The test fails on bad frees, and on what markers limit."""
    request.node.stash[_GATE] = _gate(request.node)
    request.node.stash[_RUNS] = []
    return DpdkTracked(request.node)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, and what the configuration file may say."""
    kinds = "lost, growing, all, or several with commas between"
    parser.getgroup("dpdk").addoption(
        "--dpdk-leak-check", metavar="KINDS", help=f"Look for leaks in every tracked program: {kinds}."
    )
    parser.addini("dpdk_leak_check", f"leaks that are looked for in every tracked program: {kinds}", default="")
    parser.addini("dpdk_suppressions", "a file of suppressions, relative to the root directory", default="")


def pytest_configure(config: pytest.Config) -> None:
    """The markers."""
    for marker in (
        "limit_dpdk_memory(size): fail where more bytes of DPDK's heap are live at once: '64 MB'",
        "check_dpdk_leaks(kinds='all'): fail on leaks: lost, growing, all, or several with commas between",
        "dpdk_suppressions(*lines): pass over what is known: 'leak:PATTERN', 'badfree:PATTERN'",
    ):
        config.addinivalue_line("markers", marker)


@pytest.hookimpl(trylast=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Fails a test that passed where one of its programs did not. Not called where the test failed by itself."""
    told = [line for run in item.stash.get(_RUNS, []) for line in _failure(item, run)]
    if told:
        pytest.fail("\n".join(told), pytrace=False)


def _failure(item: pytest.Item, run: TrackedRun) -> list[str]:
    from frida_rtetrack.reporters import text
    from frida_rtetrack.symbols.visible import visible

    gate = item.stash[_GATE]
    failures = gate.failures(run.summary)
    if not failures:
        return []
    found = run.summary
    lines = [f"{os.path.basename(found.argv[0])}: {' '.join(failures)}"]
    for bad in found.bad_frees:
        lines += text.bad_free(bad)
    if found.leaks is not None and gate.leak_check:
        lines += text.leaks(found.leaks)
    if found.leak_check is not None:
        lines += text.leak_check(found.leak_check)
    return [visible(line) for line in lines]


def _gate(item: pytest.Item) -> Gate:
    """What the markers and the configuration ask for. A mistake in them fails the test in a sentence."""
    import click

    from frida_rtetrack import RtetrackError
    from frida_rtetrack.commands.leakkinds import leak_kinds
    from frida_rtetrack.commands.moments import size
    from frida_rtetrack.reports.cigate import Gate, read_suppressions, suppression

    limit = item.get_closest_marker("limit_dpdk_memory")
    kinds = [marker.args[0] if marker.args else "all" for marker in item.iter_markers("check_dpdk_leaks")]
    kinds += [item.config.getoption("--dpdk-leak-check"), item.config.getini("dpdk_leak_check")]
    file = item.config.getini("dpdk_suppressions")
    try:
        suppressions = read_suppressions(Path(item.config.rootpath, file)) if file else []
        suppressions += [suppression(line) for marker in item.iter_markers("dpdk_suppressions") for line in marker.args]
        return Gate(
            frozenset().union(*(leak_kinds(str(each)) for each in kinds if each)),
            None if limit is None else size(" ".join(map(str, limit.args))),
            suppressions,
        )
    except RtetrackError as error:
        wrong = f"{error} {error.hint}".rstrip()
    except click.BadParameter as error:
        wrong = error.message
    pytest.fail(wrong, pytrace=False)
