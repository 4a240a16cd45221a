"""How far work is that may take long, told to whoever listens: where it is done nobody knows who, or whether at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int], None]
"""(what, done, total): `done` of `total` units of the work that is called `what`; the last time with both equal."""

_listeners: list[Listener] = []


def tell(what: str, done: int, total: int) -> None:
    """Says how far it is. Cheap where nobody listens."""
    for listener in tuple(_listeners):
        listener(what, done, total)


def following(what: str, items: Iterable[T], total: int, units: Callable[[T], int] = lambda item: 1) -> Iterator[T]:
    """The `items`, and how many of `total` units have been taken is told on the way; `units(item)`: those of one."""
    done, total = 0, max(total, 1)
    try:
        for item in items:
            yield item
            done += units(item)
            tell(what, min(done, total - 1), total)
    finally:
        tell(what, total, total)


@contextlib.contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """Has `listener` told, on the threads where the work is done."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
