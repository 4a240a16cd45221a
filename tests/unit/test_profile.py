"""Live blocks by who allocated them, and which of them a filter lets pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from made_up import SECOND, START, MadeUpNames, frame, moment, moments, rows, stack

from frida_rtetrack.reports.moment import Filters, Moment
from frida_rtetrack.reports.profile import frame_name, profile
from frida_rtetrack.symbols.names import Stack, Thread

NAMES = MadeUpNames(
    {1: stack("queue_setup", "main"), 2: Stack((frame("rte_ring_create", "librte_ring.so.23"), frame("main")), None)},
    {1: "rx queue", 2: "memzone:RG_a"},
    {1: Thread(4000, 4001, "app"), 2: Thread(4000, 4002, "lcore-worker-1")},
)
LIVE = rows(
    {"size_bytes": 64, "stack": 1, "label": 1},
    {"size_bytes": 64, "stack": 1, "label": 1},
    {"size_bytes": 4096, "stack": 2, "label": 2, "thread": 2, "socket": 1, "allocated_at_ns": START.monotonic_ns + 8 * SECOND},
    {"size_bytes": 128, "baseline": True, "allocated_at_ns": START.monotonic_ns + 9 * SECOND, "thread": 0},
)  # fmt: skip


@given(moments())
def test_every_block_is_in_one_sample(now: Moment) -> None:
    found = profile(now.rows, now.names)
    assert found.blocks == now.rows.size
    assert found.size_bytes == sum(now.rows["size_bytes"].tolist())
    assert [sample.size_bytes for sample in found.samples] == sorted(
        (s.size_bytes for s in found.samples), reverse=True
    )
    assert sum(sample.blocks for sample in found.samples if sample.thread is None) == now.rows["baseline"].sum()
    for sample in found.samples:
        mine = now.rows[now.rows["stack"] == sample.stack]
        assert 0 < sample.blocks <= mine.size and sample.size_bytes <= sum(mine["size_bytes"].tolist())


def test_blocks_of_one_stack_type_thread_and_socket_are_one_sample_and_the_largest_comes_first() -> None:
    largest, *others = profile(LIVE, moment(LIVE, NAMES).names).samples
    baseline, queues = sorted(others, key=lambda sample: sample.blocks)
    assert (queues.blocks, queues.size_bytes, queues.type, str(queues.thread)) == (
        2,
        128,
        "rx queue",
        "thread 4001 (app)",
    )
    assert [frame.function for frame in queues.frames] == ["queue_setup", "main"]
    assert (largest.blocks, largest.size_bytes, largest.socket) == (1, 4096, 1)
    assert (baseline.type, baseline.thread, baseline.frames) == ("<baseline>", None, ())


def test_a_frame_without_a_function_is_named_by_its_module_as_in_every_other_run() -> None:
    assert frame_name(frame("main")) == "main"
    assert frame_name(frame(None, offset=0x1C39)) == "app+0x1c39"
    assert frame_name(frame(None, None, offset=0x10)) == "0x400010"
    assert frame_name(frame("\x1b[2J")) == "\\x1b[2J"


@pytest.mark.parametrize(
    ("filters", "sizes"),
    [
        (Filters(), [64, 64, 4096, 128]),
        (Filters(type="memzone:*"), [4096]),
        (Filters(type="<baseline>"), [128]),
        (Filters(socket=1), [4096]),
        (Filters(socket=-1), [64, 64, 128]),
        (Filters(thread="lcore-*"), [4096]),
        (Filters(thread="4001"), [64, 64]),
        (Filters(thread="*"), [64, 64, 4096]),
        (Filters(module="librte_ring*"), [4096]),
        (Filters(module="app"), [64, 64, 4096]),
        (Filters(min_bytes=100), [4096, 128]),
        (Filters(older_seconds=2), [64, 64, 4096]),
        (Filters(older_seconds=2, min_bytes=65, socket=1), [4096]),
        (Filters(type="nothing of that kind"), []),
    ],
)
def test_a_block_passes_where_it_passes_every_filter_that_is_given(filters: Filters, sizes: list[int]) -> None:
    assert moment(LIVE, NAMES).only(filters).rows["size_bytes"].tolist() == sizes


def test_nothing_is_live_is_no_error() -> None:
    assert profile(rows(), moment(rows(), NAMES).names).samples == ()
    assert moment(rows(), NAMES).only(Filters(type="*", thread="*", module="*")).rows.size == 0
    assert profile(np.concatenate([LIVE, LIVE]), moment(LIVE, NAMES).names).blocks == 8
