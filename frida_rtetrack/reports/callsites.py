"""Live blocks by call site: the stack that allocated them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.progress import following
from frida_rtetrack.symbols.names import Names, Stack
from frida_rtetrack.symbols.symbolizer import frame_json

TYPES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class CallSite:
    """The live blocks that were allocated with one stack."""

    blocks: int
    size_bytes: int
    oldest_ns: int
    stack: Stack | None
    types: tuple[str, ...]
    largest_bytes: int = 0
    """The largest of the blocks."""
    stack_number: int = 0
    """What the events call the stack."""


def call_sites(live: NDArray[np.void], names: Names, count: int, by: str = "bytes") -> list[CallSite]:
    """The `count` largest call sites of the live blocks (n,), BLOCK_DTYPE, by "bytes", "blocks" or "oldest"."""
    stacks, which = np.unique(live["stack"], return_inverse=True)
    if not stacks.size:
        return []
    order = np.argsort(which, kind="stable")
    starts = np.flatnonzero(np.diff(which[order], prepend=-1))
    key = {
        "bytes": -np.add.reduceat(live["size_bytes"][order].astype(np.int64), starts),
        "blocks": -np.diff(np.append(starts, order.size)),
        "oldest": np.minimum.reduceat(live["allocated_at_ns"][order], starts),
    }[by]
    ends = np.append(starts[1:], order.size)
    largest = np.argsort(key, kind="stable")[:count]
    return [
        _call_site(live[order[starts[site] : ends[site]]], names)
        for site in following("looking names up", largest, largest.size)
    ]


def _call_site(blocks: NDArray[np.void], names: Names) -> CallSite:
    kinds = np.unique(blocks[["label", "baseline"]])
    return CallSite(
        blocks.size,
        int(blocks["size_bytes"].sum()),
        int(blocks["allocated_at_ns"].min()),
        names.stack(int(blocks["stack"][0])),
        tuple(names.label_text(int(kind["label"]), baseline=bool(kind["baseline"])) for kind in kinds[:TYPES_SHOWN]),
        int(blocks["size_bytes"].max()),
        int(blocks["stack"][0]),
    )


def call_site_json(site: CallSite) -> dict[str, Any]:
    """A call site for a JSON document."""
    return {
        "blocks": site.blocks,
        "bytes": site.size_bytes,
        "largest": site.largest_bytes,
        "types": list(site.types),
        "backtrace": backtrace_json(site.stack),
    }


def backtrace_json(stack: Stack | None) -> list[dict[str, Any]]:
    """A stack for a JSON document; [] where none was recorded."""
    return [] if stack is None else [frame_json(frame) for frame in stack.frames]
