"""DPDK's own autotests, bare and tracked: whether each passes, its bad frees, and what `verify` says at its end.

    python tests/autotests/run.py [NAME...]

Prints a row a test and ends with a count; the exit status is 0 if every test ends tracked as it does bare, without a
bad free that is not in EXPECTED, and with an empty verify.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

EAL = ("--no-huge", "-m", "2048", "--no-pci", "--no-telemetry", "--no-shconf")

# Those that run without hardware (some fail bare on a small machine, and then fail tracked in the same way).
NAMES = (
    "malloc", "ring", "mempool", "memzone", "hash", "lpm", "lpm6", "mbuf", "rcu_qsbr", "timer", "service", "stack", "rib",
    "rib6", "fib", "fib6", "efd", "member", "acl", "event_ring", "reorder", "distributor", "table", "pipeline", "meter",
    "red", "sched", "memcpy", "memory", "eal_fs", "errno", "fbarray", "alarm", "atomic", "bitmap", "bpf", "bitops", "byteorder",
    "cksum", "cmdline", "common", "crc", "cycles", "debug", "devargs", "func_reentrancy", "hash_readwrite_func",
    "interrupt", "ipfrag", "ipsec", "kvargs", "lcores", "logs", "mcslock", "per_lcore", "prefetch",
    "seqlock", "spinlock", "stack_lf", "string", "tailq", "thash", "threads", "ticketlock", "trace", "user_delay_us",
    "version", "external_mem", "graph", "pdump", "security", "cpuflags", "pflock", "pie", "rwlock_test1", "rwlock_rda",
    "rwlock_rds_wrm", "rwlock_rde_wro", "eventdev_common", "barrier", "hash_multiwriter", "timer_racecond",
    "hash_functions", "dmadev", "rawdev", "metrics", "telemetry_json", "link_bonding", "link_bonding_rssconf", "ring_pmd",
    "event_eth_tx_adapter", "bitratestats", "latencystats", "vdev", "bpf_convert", "rib_slow", "fib_slow",
    "distributor_perf", "stack_perf", "rand_perf",
)  # fmt: skip

EXPECTED: dict[str, dict[str, int]] = {}
"""Bad frees that a test commits on purpose: test -> kind -> how many. None so far."""

HIDDEN = {"trace": 1}
"""Blocks that pass by every exported function: DPDK's trace buffers (eal_malloc_no_trace), busy in the heap, unseen."""


@dataclass(frozen=True)
class Outcome:
    """How a run of a test ended."""

    status: int
    passed: bool
    summary: dict[str, Any] | None = None

    @property
    def bad_frees(self) -> dict[str, int]:
        """Bad frees by kind."""
        kinds: dict[str, int] = {}
        for bad in (self.summary or {}).get("bad_frees", ()):
            kinds[bad["kind"]] = kinds.get(bad["kind"], 0) + 1
        return kinds


def run(name: str, engine: str | None, seconds: float) -> Outcome | None:
    """Runs the autotest, tracked if an engine is given; None if it does not end in time."""
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary.json"
        prefix = () if engine is None else (
            *(sys.executable, "-m", "frida_rtetrack", "spawn", "--no-repl", "--quiet", "--verify", "--engine", engine),
            *("--summary", str(summary), "--dump-file", str(Path(folder) / "dump.csv")),
        )  # fmt: skip
        arguments = [*prefix, "dpdk-test", *EAL, f"{name}_autotest"]
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "DPDK_TEST": ""},
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
            return None
        found = json.loads(summary.read_text()) if summary.exists() else None
        return Outcome(process.returncode, b"Test OK" in output, found)


def judge(name: str, bare: Outcome | None, tracked: Outcome | None) -> tuple[bool, str]:
    """Whether the tracked run is right, and a row that says why."""
    if bare is None:
        return True, "does not end bare: left out"
    if tracked is None:
        return False, "does not end tracked"
    if tracked.summary is None:
        return False, f"no summary (exit status {tracked.status})"
    verify, events = tracked.summary["verify"], tracked.summary["events"]
    differences = (
        "not taken" if verify is None else f"{len(verify['missing'])} missing, {len(verify['unexpected'])} unexpected"
    )
    right = (
        (bare.status, bare.passed) == (tracked.status, tracked.passed)
        and tracked.bad_frees == EXPECTED.get(name, {})
        and verify is not None
        and (len(verify["missing"]), verify["unexpected"]) == (HIDDEN.get(name, 0), [])
        and events["lost"] == 0
    )
    word = {True: "passes", False: "fails"}
    return right, (
        f"{word[bare.passed]:>6} bare, {word[tracked.passed]:>6} tracked; {events['allocations']:>9,} allocations, "
        f"bad frees {tracked.bad_frees or 'none'}; verify: {differences}"
    )


@click.command()
@click.option("--engine", default="native", show_default=True)
@click.option("--seconds", default=120.0, show_default=True, help="The most that a test may take.")
@click.argument("names", nargs=-1)
def main(engine: str, seconds: float, names: tuple[str, ...]) -> None:
    """Run DPDK's autotests NAMES (default: all that are known to run without hardware), bare and tracked."""
    wrong = []
    for name in dict.fromkeys(names or NAMES):
        right, row = judge(name, run(name, None, seconds), run(name, engine, 3 * seconds))
        click.echo(f"{'ok  ' if right else 'BAD '} {name:<22} {row}")
        if not right:
            wrong.append(name)
    click.echo(f"{len(dict.fromkeys(names or NAMES)) - len(wrong)} right, {len(wrong)} wrong: {', '.join(wrong)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
