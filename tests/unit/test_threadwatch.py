"""Which thread another one has created: in this very process."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import threading
import time

import pytest

from frida_rtetrack.target.arrival.threadwatch import ThreadWatch

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="only there does Frida come by a stand-in")

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTOU, 32)
"""32 is SIGCANCEL, which the stand-in blocks and no thread that the C library creates does."""
_SYS_RT_SIGPROCMASK = 14


class Creator:
    """A thread that blocks SIGNALS and creates another one when it is told to."""

    def __init__(self) -> None:
        self.ready, self._create, self._end = threading.Event(), threading.Event(), threading.Event()
        self.created = threading.Thread(target=self._end.wait, daemon=True)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.ready.wait()

    def _run(self) -> None:
        mask = ctypes.c_uint64(sum(1 << number - 1 for number in SIGNALS))
        assert ctypes.CDLL(None).syscall(_SYS_RT_SIGPROCMASK, signal.SIG_BLOCK, ctypes.byref(mask), None, 8) == 0
        self.ready.set()
        self._create.wait()
        self.created.start()

    def create(self) -> int:
        self._create.set()
        self.thread.join()
        assert self.created.native_id is not None
        return self.created.native_id

    def end(self) -> None:
        self._end.set()
        self.created.join()


def test_the_thread_is_found_among_those_that_others_create() -> None:
    creator, found = Creator(), list[int]()
    stop = threading.Event()
    assert creator.thread.native_id is not None
    watch = ThreadWatch(os.getpid(), creator.thread.native_id, found.append)
    others = [threading.Thread(target=stop.wait, daemon=True) for _ in range(20)]
    for other in others:
        other.start()
    time.sleep(0.05)
    assert found == []
    created = creator.create()
    deadline = time.monotonic() + 10
    while not found and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found == [created]
    watch.finish()
    stop.set()
    creator.end()
    for other in others:
        other.join()


def test_nothing_is_told_of_where_none_comes() -> None:
    creator, found = Creator(), list[int]()
    assert creator.thread.native_id is not None
    watch = ThreadWatch(os.getpid(), creator.thread.native_id, found.append)
    time.sleep(0.02)
    watch.finish()
    creator.create()
    time.sleep(0.02)
    assert found == []
    creator.end()
