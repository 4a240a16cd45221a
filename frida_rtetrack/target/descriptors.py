"""Descriptors that are looked at without being ours to keep."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def closing_socket(descriptor: int) -> Iterator[socket.socket | None]:
    """`descriptor`, which is closed at the end, as a socket; None where it is none. (socket.socket leaves that open.)"""
    try:
        found = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        yield None
        return
    with found:
        yield found
