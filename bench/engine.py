"""What the compiled engine takes by itself: ns a malloc/free pair through its hooks, without DPDK, Frida or a host."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
NATIVE = HERE.parent / "frida_rtetrack" / "native"
ENGINE = NATIVE / "engine-x86_64.so"
PROGRAM = BUILD / "hooks"
ROUNDS = 5
_LINE = re.compile(r"^(.+): ([0-9.]+) ns")
_COUNTER = '__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));'


def figures() -> list[dict[str, object]]:
    """A row each for the counter that events are timed with, for every kind of stacks, and for what the time takes an event there."""
    if not ENGINE.is_file():
        return []  # there was no compiler when the package was built
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", "-w", "-rdynamic", "-ldl", "-lpthread"]
    subprocess.run(["gcc", "-o", str(PROGRAM), str(HERE / "hooks.c"), *flags], check=True)
    timed: dict[str, list[float]] = {}
    timeless: dict[str, list[float]] = {}
    without = _engine_without_times()
    for _ in range(ROUNDS):
        for frames in ("13", "29"):
            for engine, measured in ((ENGINE, timed), (without, timeless)):
                run = subprocess.run([PROGRAM, engine, frames, "0.3"], check=True, capture_output=True, text=True)
                for what, ns in (match.groups() for match in map(_LINE.match, run.stdout.splitlines()) if match):
                    measured.setdefault(what, []).append(float(ns))
    rows: list[dict[str, object]] = []
    for what, each in timed.items():
        rows.append({"what": f"engine, {what}", "ns": round(statistics.median(each), 1)})
        if "frames" in what:  # a pair of two events
            taken = (statistics.median(each) - statistics.median(timeless[what])) / 2
            rows.append({"what": f"engine, {what}: the time of an event", "ns": round(taken, 1)})
    return rows


def _engine_without_times() -> Path:
    """The engine compiled with a constant where it reads the counter. Raises CalledProcessError."""
    source = BUILD / "timeless"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(NATIVE, source, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    header = source / "platform.h"
    text = header.read_text()
    if text.count(_COUNTER) != 1:
        raise RuntimeError(f"{header} does not read the counter as bench/engine.py expects.")
    header.write_text(text.replace(_COUNTER, "low = high = 1;"))
    subprocess.run([sys.executable, str(source / "build.py")], check=True, capture_output=True)
    return source / ENGINE.name
