"""The table of blocks against a dict: finding, collisions, growth, forgetting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from frida_rtetrack.tracking import blocktable
from frida_rtetrack.tracking.blocktable import Block, BlockTable, Freed, Origin

CACHE_LINE = 64


def u64(*addresses: int) -> NDArray[np.uint64]:
    return np.array(addresses, np.uint64)


def block_at(address: int, **known: int) -> Block:
    fields = dict(size_bytes=100, label=3, stack=5, thread=2, api=1, socket=-1, allocated_at_ns=77, sequence=9)
    return Block(address, **(fields | known))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that grow early: room for 4 rows, an index of 8 slots."""
    monkeypatch.setattr(blocktable, "_FIRST_CAPACITY", 4)
    monkeypatch.setattr(blocktable, "_SMALLEST_INDEX_BITS", 3)


@pytest.mark.usefixtures("small")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.booleans(), st.lists(st.integers(1, 400) | st.integers(0, 2**64 - 1), max_size=40))),
    st.randoms(use_true_random=False),
)
def test_find_gives_each_address_the_row_it_was_inserted_at(steps: list, random) -> None:
    table, rows = BlockTable(), {}
    for forget, addresses in steps:
        new = [address for address in dict.fromkeys(addresses) if address not in rows]
        together = new[: random.randint(0, len(new))]
        rows |= zip(together, table.insert(u64(*together)).tolist(), strict=True)
        rows |= {address: table.insert_one(address) for address in new[len(together) :]}
        if forget:
            kept = sorted(random.sample(sorted(rows.values()), len(rows) // 2))
            table.keep(np.array(kept, np.int64))
            rows = {address: kept.index(row) for address, row in rows.items() if row in kept}
        asked = [*rows, 12345, *(address + 1 for address in addresses if address + 1 < 2**64)]
        expected = [rows.get(address, -1) for address in asked]
        assert table.find(u64(*asked)).tolist() == expected
        assert [table.find_one(address) for address in asked] == expected
        assert table.used == len(rows)
        assert sorted(rows.values()) == list(range(len(rows)))


@pytest.mark.usefixtures("small")
def test_addresses_whose_home_is_the_last_slot_wrap_around() -> None:
    table = BlockTable()
    candidates = np.arange(1, 2000, dtype=np.uint64) * np.uint64(CACHE_LINE)
    for bits in (3, 4):  # before the index is rebuilt, and by rebuilding it
        last = candidates[(candidates * np.uint64(blocktable._MULTIPLIER)) >> np.uint64(64 - bits) == (1 << bits) - 1]
        table = BlockTable()
        rows = np.concatenate([table.insert(last[i : i + 1]) for i in range(4 if bits == 3 else 7)])
        assert table.find(last[: rows.size]).tolist() == rows.tolist()
        assert table.find_one(int(last[1])) == 1
        assert table.find(last[rows.size :][:5]).tolist() == [-1] * 5


@pytest.mark.usefixtures("small")
def test_rows_keep_their_contents_when_the_table_grows() -> None:
    table = BlockTable()
    blocks = [block_at(CACHE_LINE * i, size_bytes=i, sequence=i, label=i) for i in range(1, 200)]
    for block in blocks:
        table.put(table.insert_one(block.address), block)
    assert [table.block(row) for row in range(table.used)] == blocks


def test_a_hundred_thousand_regular_addresses_are_found_in_a_few_probes() -> None:
    table = BlockTable()
    addresses = np.uint64(0x1_4000_0000) + np.arange(100_000, dtype=np.uint64) * np.uint64(CACHE_LINE)
    rows = table.insert(addresses)
    assert np.array_equal(table.find(addresses), rows)
    assert (table.find(addresses + np.uint64(8)) == -1).all()
    distance = (np.flatnonzero(table._index) - np.sort(table._home(addresses))).mean()
    assert distance < 2


def test_a_row_is_a_block_and_then_a_freed_one() -> None:
    table = BlockTable()
    block = block_at(640, baseline=True, resizes=2, resize_stack=8)
    row = table.insert_one(640)
    table.put(row, block)
    assert (table.block(row), table.live_rows().tolist(), table.freed_rows().tolist()) == (block, [row], [])
    freed = Freed(stack=4, thread=6, api=9, timestamp_ns=123, sequence=45)
    table.put_freed(row, freed)
    assert (table.block(row), table.freed(row)) == (block, freed)
    assert (table.live_rows().tolist(), table.freed_rows().tolist()) == ([], [row])
    table.origin[row] = Origin.UNKNOWN
    assert table.block(row) is None


def test_containing_finds_the_live_block_around_an_address() -> None:
    table = BlockTable()
    for address, size_bytes in ((640, 100), (1280, 64), (2560, 0)):
        table.put(table.insert_one(address), block_at(address, size_bytes=size_bytes))
    table.put_freed(1, Freed(0, 0, 9, 0, 0))
    asked = {639: -1, 640: 0, 739: 0, 740: -1, 1290: -1, 2560: -1, 0: -1, 2**64 - 1: -1}
    assert {address: table.containing(address) for address in asked} == asked


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1000), st.integers(0, 50)), max_size=30))
def test_groups_add_up(blocks: list[tuple[int, int, int]]) -> None:
    table = BlockTable()
    for i, (stack, size_bytes, at_ns) in enumerate(blocks):
        known = {"stack": stack, "size_bytes": size_bytes, "allocated_at_ns": at_ns}
        table.put(table.insert_one(64 * i), block_at(64 * i, **known))
    groups = table.grouped(table.live_rows(), "stack")
    found = {int(g["stack"]): (int(g["blocks"]), int(g["bytes"]), int(g["oldest_ns"])) for g in groups}
    by_stack = {stack: [block for block in blocks if block[0] == stack] for stack, _, _ in blocks}
    assert found == {
        stack: (len(same), sum(size for _, size, _ in same), min(at for _, _, at in same))
        for stack, same in by_stack.items()
    }
    assert groups["bytes"].tolist() == sorted(groups["bytes"].tolist(), reverse=True)
