"""The pytest plugin on real programs: what passes, what fails and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ("pytester",)

TESTS = """
import pytest

LEAKY, DEMO = "{programs}/leaky", "{programs}/demo"

def test_clean(dpdk_tracked):
    run = dpdk_tracked([LEAKY, "churn", "cleanup"])
    assert run.exit_status == 0 and run.summary.frees >= 200 and not run.host.bad_frees

def test_bad_frees(dpdk_tracked):
    dpdk_tracked([DEMO])

@pytest.mark.dpdk_suppressions("badfree:buffer_trim", "badfree:^table_clear$")
def test_known_bad_frees(dpdk_tracked):
    assert len(dpdk_tracked([DEMO]).summary.bad_frees) == 2

@pytest.mark.check_dpdk_leaks("lost")
def test_lost(dpdk_tracked):
    dpdk_tracked([LEAKY, "lose"])

@pytest.mark.check_dpdk_leaks("lost")
@pytest.mark.dpdk_suppressions("leak:lose_some")
def test_known_lost(dpdk_tracked):
    dpdk_tracked([LEAKY, "lose"])

@pytest.mark.check_dpdk_leaks
def test_not_freed(dpdk_tracked):
    dpdk_tracked([LEAKY, "keep", "cleanup"])

@pytest.mark.limit_dpdk_memory("100 KB")
def test_too_much(dpdk_tracked):
    dpdk_tracked([LEAKY, "keep"])

@pytest.mark.limit_dpdk_memory("64 MB")
def test_while_it_runs(dpdk_tracked):
    with dpdk_tracked.start(["{programs}/held"]) as host:
        host.sync()
        host.kill()

def test_too_long(dpdk_tracked):
    dpdk_tracked(["{programs}/held"], timeout=0.5)

@pytest.mark.limit_dpdk_memory("much")
def test_mistake(dpdk_tracked):
    dpdk_tracked([DEMO])

def test_fails_by_itself(dpdk_tracked):
    dpdk_tracked([DEMO])
    assert 1 == 2
"""


def test_programs_fail_a_test_by_what_is_found_in_them(pytester: pytest.Pytester, programs: Path) -> None:
    pytester.makepyfile(TESTS.replace("{programs}", str(programs)))
    ran = pytester.runpytest_subprocess("-v", "-p", "no:xdist", timeout=120)
    ran.assert_outcomes(passed=4, failed=6, errors=1)
    output = ran.stdout.str()
    for passed in ("test_clean", "test_known_bad_frees", "test_known_lost", "test_while_it_runs"):
        assert f"::{passed} PASSED" in output
    for told in (
        "demo: 2 bad frees.",
        "Duplicate free of address",
        "leaky: 416 bytes in 2 blocks lost: nothing points there any more; by them 100 bytes in 1 block.",
        "leaky: 624 bytes in 3 blocks leaked.",
        "bytes were live at the most, 102,400 are allowed.",
        "held did not end within 0.5 seconds.",
        "'much' is no size: give bytes, or as in 64K, 10M, 1.5G.",
        "assert 1 == 2",
    ):
        assert told in output
    assert "bad frees" not in output.partition("_ test_fails_by_itself _")[2].partition("short test summary")[0]


def test_the_configuration_checks_every_program_and_who_does_not_use_it_loads_no_frida(
    pytester: pytest.Pytester, programs: Path
) -> None:
    pytester.makeini("[pytest]\ndpdk_leak_check = lost\ndpdk_suppressions = known.txt")
    Path(pytester.path, "known.txt").write_text("leak:no_such_function\n")
    pytester.makepyfile(
        test_lost=f"def test_lost(dpdk_tracked):\n    dpdk_tracked(['{programs}/leaky', 'lose'])",
        test_other="import sys\n\ndef test_other():\n    assert 'frida' not in sys.modules and 'numpy' not in sys.modules",
    )
    assert pytester.runpytest_subprocess("-p", "no:xdist", "-k", "test_other").ret == 0
    lost = pytester.runpytest_subprocess("-p", "no:xdist", "-k", "test_lost", timeout=60)
    lost.assert_outcomes(failed=1, deselected=1)
    lost.stdout.fnmatch_lines("*416 bytes in 2 blocks lost*")
