"""speedscope's JSON: two sampled profiles, live bytes and live blocks (https://www.speedscope.app/file-format-schema.json)."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from frida_rtetrack.reports.moment import Moment
from frida_rtetrack.reports.profile import NO_STACK, frame_name, printable, profile
from frida_rtetrack.symbols.symbolizer import Frame

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


def write(moment: Moment, file: BinaryIO) -> None:
    """Writes one JSON document."""
    frames: dict[tuple[str, str | None, int | None], int] = {}
    samples = profile(moment.rows, moment.names).samples
    stacks = [
        [frames.setdefault(_key(frame), len(frames)) for frame in reversed(sample.frames)]
        or [frames.setdefault((NO_STACK, None, None), len(frames))]
        for sample in samples
    ]
    document = {
        "$schema": SCHEMA,
        "exporter": f"rtetrack-frida {moment.run.version}",
        "name": printable(" ".join(moment.run.argv)) or f"process {moment.run.pid}",
        "activeProfileIndex": 0,
        "shared": {"frames": [_frame(*key) for key in frames]},
        "profiles": [
            _profile("live bytes", "bytes", stacks, [sample.size_bytes for sample in samples]),
            _profile("live blocks", "none", stacks, [sample.blocks for sample in samples]),
        ],
    }
    file.write(json.dumps(document, separators=(",", ":")).encode())


def _key(frame: Frame) -> tuple[str, str | None, int | None]:
    return frame_name(frame), frame.file or frame.module_path, frame.line if frame.file else None


def _frame(name: str, file: str | None, line: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name}
    if file:
        found["file"] = printable(file)
    if line:
        found["line"] = line
    return found


def _profile(name: str, unit: str, stacks: list[list[int]], weights: list[int]) -> dict[str, Any]:
    return {
        "type": "sampled",
        "name": name,
        "unit": unit,
        "startValue": 0,
        "endValue": sum(weights),
        "samples": stacks,
        "weights": weights,
    }
