"""What the compiled engine takes by itself: ns a malloc/free pair through its hooks, without DPDK, Frida or a host."""

from __future__ import annotations

import re
import statistics
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
ENGINE = HERE.parent / "frida_rtetrack" / "native" / "engine-x86_64.so"
PROGRAM = HERE.parent / "build" / "bench" / "hooks"
ROUNDS = 5
_LINE = re.compile(r"^(.+): ([0-9.]+) ns")


def figures() -> list[dict[str, object]]:
    """A row each for the counter that events are timed with (two readings a pair), and for every kind of stacks."""
    if not ENGINE.is_file():
        return []  # there was no compiler when the package was built
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", "-w", "-rdynamic", "-ldl", "-lpthread"]
    subprocess.run(["gcc", "-o", str(PROGRAM), str(HERE / "hooks.c"), *flags], check=True)
    measured: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for frames in ("13", "29"):
            run = subprocess.run([PROGRAM, ENGINE, frames, "0.3"], check=True, capture_output=True, text=True)
            for what, ns in (match.groups() for match in map(_LINE.match, run.stdout.splitlines()) if match):
                measured.setdefault(what, []).append(float(ns))
    return [{"what": f"engine, {what}", "ns": round(statistics.median(each), 1)} for what, each in measured.items()]
