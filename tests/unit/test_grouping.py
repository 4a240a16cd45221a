"""Rows grouped by numbers come out as a dictionary would have them, whether the numbers lie close together or not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frida_rtetrack.tracking import grouping

KEYS = st.lists(
    st.tuples(st.integers(-3, 3), st.sampled_from((0, 7, (1 << 32) - 1)), st.integers(0, 1 << 50)), max_size=30
)


@pytest.mark.parametrize("counted", [1, 12, grouping.KEYS_COUNTED])
@given(rows=KEYS)
def test_each_group_has_its_rows_its_sum_and_its_least(counted: int, rows: list[tuple[int, int, int]]) -> None:
    one, other, values = (np.array([row[place] for row in rows], np.int64) for place in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "KEYS_COUNTED", counted)
        some, which = grouping.together(one, np.full(one.size, 5, np.int8), other.astype(np.uint32))
    expected: dict[tuple[int, int], list[int]] = {}
    for a, b, value in rows:
        expected.setdefault((a, b), []).append(value)
    keys = [(int(one[row]), int(other[row])) for row in some]
    assert sorted(keys) == sorted(expected)
    assert dict(zip(keys, grouping.added(which, values, some.size).tolist(), strict=True)) == {
        k: sum(v) for k, v in expected.items()
    }
    assert dict(zip(keys, grouping.smallest(which, values, some.size).tolist(), strict=True)) == {
        k: min(v) for k, v in expected.items()
    }
