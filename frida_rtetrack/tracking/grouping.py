"""Grouping of very many rows by numbers: by counting where the numbers lie close together, which is far faster than sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Which = NDArray[np.int64]
"""Which group each row belongs to (n,)."""

KEYS_COUNTED = 1 << 22
"""Numbers that lie no further apart are counted."""


def numbered(keys: NDArray[Any]) -> tuple[NDArray[np.int64], Which]:
    """The distinct `keys` (n,), integers, ascending (m,); and which of them each is."""
    keys = keys.astype(np.int64)
    if not keys.size:
        return keys, keys
    least = int(keys.min())
    if int(keys.max()) - least >= KEYS_COUNTED:
        values, which = np.unique(keys, return_inverse=True)
        return values, which
    which = keys - least
    values = np.flatnonzero(np.bincount(which))
    number_of = np.zeros(values[-1] + 1, np.int64)
    number_of[values] = np.arange(values.size)
    return values + least, number_of[which]


def together(*columns: NDArray[Any]) -> tuple[NDArray[np.int64], Which]:
    """Rows that are equal in all `columns`, each (n,): one row of each group (m,), and which group each row belongs to.

    The columns are the digits of one number, which is counted at the end; closed up before where it would be too large for that.
    """
    which = np.zeros(columns[0].size, np.int64)
    count = 1
    for column in columns if which.size else ():
        digit = column.astype(np.int64)
        digit -= digit.min()
        base = int(digit.max()) + 1
        if count * base > KEYS_COUNTED:
            values, digit = numbered(digit)
            base = values.size
        if count * base > KEYS_COUNTED:
            values, which = numbered(which)
            count = values.size
        if base > 1:
            which *= base
            which += digit
            count *= base
    values, which = numbered(which)
    some = np.zeros(values.size, np.int64)
    some[which] = np.arange(which.size)
    return some, which


def added(which: Which, values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The sum of the `values` (n,), integers, of each of `count` groups, to the unit. In the dtypes that numpy is fast with."""
    total = np.zeros(count, np.int64)
    np.add.at(total, which, values.astype(np.int64, copy=False))
    return total


def smallest(which: Which, values: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The least of the `values` (n,) of each of `count` groups."""
    found = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(found, which, values)
    return found
