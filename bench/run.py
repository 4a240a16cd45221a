"""What tracking costs: ns a malloc/free pair, bare and in every way of tracking, in one call and interleaved.

Prints a table of ratios to bare (medians over the rounds) and writes it as JSON. Nothing here passes or fails: a busy
machine gives other figures, and the bare ones beside them say so. `make bench`, or `python bench/run.py --help`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
EAL = ("--no-huge", "-m", "512", "--no-pci", "--no-telemetry", "--no-shconf", "--log-level", "1")
SECTIONS = ("engine", "burst", "sustained", "steady", "host", "recording", "real")
FAR_NS = 80
"""What a cache line takes from one processor to the other at least where they are called far: more than within a core or a cache."""
NEAR, FAR = ", near", ", far"
ROUNDS_OF_TWO = 3
"""Rounds with two threads for one with one: a part of them does not count, and DPDK's lock makes them scatter."""
TRACK = (sys.executable, "-m", "frida_rtetrack", "spawn", "--quiet", "--no-repl", "--no-dump-on-bad-free")


@dataclass(frozen=True)
class Way:
    """A way to run the benchmark's program."""

    name: str
    prefix: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    slow: bool = False
    """Takes so long a pair that fewer rounds have to do."""


def ways() -> dict[str, Way]:
    """All of them, by name; `bare` first."""
    interposer = str(BUILD / "interposer.so")
    listed = (
        Way("bare"),
        Way("LD_PRELOAD", (), (("LD_PRELOAD", interposer), ("INTERPOSER_BACKTRACE", "0"))),
        Way("LD_PRELOAD + backtrace()", (), (("LD_PRELOAD", interposer),)),
        Way("native, no backtrace", (*TRACK, "--engine", "native", "--no-backtrace")),
        Way("native, allocations", (*TRACK, "--engine", "native", "--no-free-backtrace")),
        Way("native, both", (*TRACK, "--engine", "native")),
        Way("native, both, recorded", (*TRACK, "--engine", "native", "-o", str(BUILD / "bench.rtrec"), "--force")),
        Way(
            "native, both, --aggregate",
            (*TRACK, "--engine", "native", "-o", str(BUILD / "bench.rtrec"), "--force", "--aggregate=1"),
        ),
        *(
            Way(f"{name} (TinyCC)", (*TRACK, "--engine", "native", *without), (("RTETRACK_COMPILER", "tinycc"),))
            for name, without in (
                ("native, no backtrace", ("--no-backtrace",)),
                ("native, allocations", ("--no-free-backtrace",)),
                ("native, both", ()),
            )
        ),
        Way("portable, both", (*TRACK, "--engine", "portable"), slow=True),
    )
    return {way.name: way for way in listed}


def build() -> None:
    """Compiles the program and the interposer."""
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libdpdk"], check=True, capture_output=True, text=True)
    subprocess.run(
        ["gcc", "-O2", "-g", "-o", str(BUILD / "pairs"), str(HERE / "pairs.c"), *flags.stdout.split(), "-lpthread"],
        check=True,
    )
    subprocess.run(
        ["g++", "-O2", "-shared", "-fPIC", "-o", str(BUILD / "interposer.so"), str(HERE / "interposer.cpp"), "-ldl"],
        check=True,
    )
    subprocess.run(["gcc", "-O2", "-o", str(BUILD / "handover"), str(HERE / "handover.c"), "-lpthread"], check=True)


def distance() -> str:
    """Of the processors that two threads are pinned to, as of now."""
    run = subprocess.run([str(BUILD / "handover")], check=True, capture_output=True, text=True)
    return NEAR if float(run.stdout) < FAR_NS else FAR


@dataclass(frozen=True)
class Measured:
    """What one run of the program said."""

    ns_a_pair: float
    pairs: float
    cpu_seconds: float
    lost: int


def measure(way: Way, mode: str, threads: int, frames: int, seconds: float, live: int = 1, size: int = 64) -> Measured:
    """One run."""
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder) / "summary.json"
        prefix = (*way.prefix, "--summary", str(summary)) if way.prefix else ()
        run = subprocess.run(
            [*prefix, str(BUILD / "pairs"), mode, *map(str, (threads, frames, size, live, seconds)), *EAL],
            env={**os.environ, **dict(way.environment)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        if run.returncode:
            raise click.ClickException(f"{way.name}: the program failed ({run.returncode}): {run.stderr[-500:]}")
        lost = json.loads(summary.read_text())["events"]["lost"] if summary.exists() else 0
    ns, pairs, cpu = map(float, run.stdout.split()[-3:])
    return Measured(ns, pairs, cpu, lost)


def compare(
    title: str, names: Sequence[str], mode: str, threads: int, frames: int, seconds: float, rounds: int
) -> list[dict[str, object]]:
    """A row a way: the median ns a pair, the median of its ratios to the bare run of the same round, and the ratio of the fastest
    runs of both, which is what a machine with nothing else to do would give.

    With two threads in bursts near processors and far ones have rows of their own, with the ratio of the medians: a virtual
    machine's are moved between two runs. Where they were during a run, it does not count.
    """
    results: dict[str, dict[str, list[Measured]]] = {}
    two = threads > 1 and mode == "burst"
    for _ in range(rounds * ROUNDS_OF_TWO if two else rounds):
        for name in names:
            way = ways()[name]
            if way.slow and any(name in of for of in results.values()):
                continue
            before = distance() if two else ""
            measured = measure(way, mode, threads, frames, 1.0 if way.slow else seconds)
            if way.slow or not two or before == distance():
                results.setdefault(before, {}).setdefault(name, []).append(measured)
    rows = []
    for where, measured_of in results.items():
        for name in (name for name in names if name in measured_of and "bare" in measured_of):
            rows.append(_row(f"{title}{where}", name, measured_of[name], measured_of["bare"], paired=not two))
            click.echo(
                f"{rows[-1]['what']:<42} {name:<32} {rows[-1]['ns_a_pair']:>10,.1f} ns {rows[-1]['times_bare']:>9.2f} x  "
                f"fastest {rows[-1]['times_bare_fastest']:>6.2f} x  {rows[-1]['runs']} runs  lost {rows[-1]['lost']}"
            )
    return rows


def _row(what: str, way: str, each: list[Measured], bare: list[Measured], *, paired: bool) -> dict[str, object]:
    median_ns, bare_ns = (statistics.median(one.ns_a_pair for one in runs) for runs in (each, bare))
    ratios = [one.ns_a_pair / with_bare.ns_a_pair for one, with_bare in zip(each, bare, strict=False)]
    fastest = min(one.ns_a_pair for one in each) / min(one.ns_a_pair for one in bare)
    return {
        "what": what,
        "way": way,
        "ns_a_pair": round(median_ns, 1),
        "times_bare": round(statistics.median(ratios) if paired else median_ns / bare_ns, 2),
        "times_bare_fastest": round(fastest, 2),
        "runs": len(each),
        "lost": sum(one.lost for one in each),
        "pairs": int(sum(one.pairs for one in each)),
    }


def steady(rounds: int) -> list[dict[str, object]]:
    """CPU time of a program that does 10,000 pairs a second, bare and tracked (its own, without the host's)."""
    shares: dict[str, list[float]] = {"bare": [], "native, both": []}
    for _ in range(rounds):
        for name in shares:
            shares[name].append(measure(ways()[name], "10000", 1, 13, 5).cpu_seconds)
    growth = statistics.median(
        tracked - bare for tracked, bare in zip(shares["native, both"], shares["bare"], strict=True)
    )
    percent = 100 * growth / 5
    click.echo(f"10,000 pairs a second: {growth / 5 * 1e6:.0f} us more CPU a second, {percent:.2f} % of a core")
    return [{"what": "10,000 pairs a second", "cpu_growth_percent_of_a_core": round(percent, 3), "cpu_seconds": shares}]


def own_memory_kib() -> int:
    """What is resident now, without pages of files: Frida maps 40 MiB of its library whatever is tracked."""
    status = Path("/proc/self/status").read_text()
    return sum(map(int, re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+)", status, re.MULTILINE)))


def host_figures(blocks: int) -> list[dict[str, object]]:
    """Events a second that the host takes, its memory at `blocks` live, seconds of a dump and of an attach.

    `memory_mib` is there then, without pages of files; `most_mib`, with them, is the most there was: Frida's coming takes much for a moment.
    """
    import presence  # beside this file
    import streams

    from frida_rtetrack import Host, Options

    program = [str(BUILD / "pairs"), "1", "1", "13", "64", str(blocks), "120", *EAL]
    program[program.index("-m") + 1] = str(max(512, blocks // 2500))
    rows: list[dict[str, object]] = []
    before, most_before = own_memory_kib(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        options = Options(dump_path=Path(folder) / "dump.txt")
        with Host.spawn(program, options) as host:
            while host.tracking.totals.allocations < blocks and host.ending is None:
                time.sleep(0.2)
            live = host.tracking.live_blocks
            grown = own_memory_kib() - before
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most_before
            started = time.monotonic()
            host.dump()
            dumped = time.monotonic() - started
            started = time.monotonic()
            difference = host.verify()
            verified = time.monotonic() - started
            host.kill()
        rows.append({"what": "host", "live_blocks": live, "memory_mib": grown // 1024, "bytes_a_block": round(grown * 1024 / live), "most_mib": most // 1024,
                     "dump_seconds": round(dumped, 2), "verify_seconds": round(verified, 2), "verify_empty": not difference})  # fmt: skip
        process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(4)
        seconds = []
        for _ in range(3):
            started = time.monotonic()
            with Host.attach(process.pid, options) as host:
                seconds.append(time.monotonic() - started)
        process.kill()
        process.wait()
        rows.append({"what": "attach", "seconds": [round(each, 2) for each in seconds], "baseline_blocks": blocks})
    rows += presence.figures()
    rows += streams.figures()
    for row in rows:
        click.echo(json.dumps(row))
    return rows


def real_program() -> list[dict[str, object]]:
    """DPDK's own malloc_perf_autotest, bare and tracked: its figures side by side."""
    rows = []
    for name in ("bare", "native, both"):
        way = ways()[name]
        run = subprocess.run(
            [
                *way.prefix,
                "dpdk-test",
                "--no-huge",
                "-m",
                "6000",
                "--no-pci",
                "--no-telemetry",
                "--no-shconf",
                "malloc_perf_autotest",
            ],
            capture_output=True,
            text=True,
            timeout=900,
        )
        table = [line for line in run.stderr.splitlines() if re.match(r"USER1: *(Performance|Size|\d+)", line)]
        click.echo(
            f"malloc_perf_autotest, {name}: exit status {run.returncode}, {'Test OK' if 'Test OK' in run.stdout else 'FAILED'}"
        )
        for line in table:
            click.echo(f"    {line.strip()}")
        rows.append(
            {
                "what": "malloc_perf_autotest",
                "way": name,
                "exit_status": run.returncode,
                "passed": "Test OK" in run.stdout,
                "table": table,
            }
        )
    return rows


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=2.0, show_default=True, help="Of a burst run; a sustained one takes 10.")
@click.option("--sustained-seconds", default=10.0, show_default=True)
@click.option("--only", type=click.Choice(SECTIONS), multiple=True)
@click.option("--blocks", default=1_000_000, show_default=True, help="Live blocks in the host's figures.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=BUILD / "bench.json", show_default=True)
def main(
    rounds: int, seconds: float, sustained_seconds: float, only: tuple[str, ...], blocks: int, json_path: Path
) -> None:
    """Measure what tracking costs."""
    build()
    rows: list[dict[str, object]] = []
    wanted = only or SECTIONS
    names = list(ways())
    if "engine" in wanted:
        import engine  # beside this file

        for row in engine.figures():
            click.echo(json.dumps(row))
            rows.append(row)
    if "burst" in wanted:
        for threads in (1, 2):
            for frames in (13, 29):
                rows += compare(
                    f"burst, {threads} thread, {frames} frames", names, "burst", threads, frames, seconds, rounds
                )
    if "sustained" in wanted:
        for threads in (1, 2):
            rows += compare(
                f"sustained, {threads} thread, 13 frames",
                names,
                "sustained",
                threads,
                13,
                sustained_seconds,
                max(1, rounds // 3),
            )
    if "steady" in wanted:
        rows += steady(rounds)
    if "host" in wanted:
        rows += host_figures(blocks)
    if "recording" in wanted:
        import recordings  # beside this file

        for row in recordings.figures():
            click.echo(json.dumps(row))
            rows.append(row)
    if "real" in wanted:
        rows += real_program()
    json_path.write_text(json.dumps({"cpus": os.cpu_count(), "rows": rows}, indent=1) + "\n")
    click.echo(f"written to {json_path}")


if __name__ == "__main__":
    main()
