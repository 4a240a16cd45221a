"""The gate's machine code, run in this very process: who waits at it, for how long, and with what it goes on."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from frida_rtetrack.target.arrival import region

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the code is for x86-64")

AT_ONCE_S = 0.3
PATIENCE_S = 3.0

Gated = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long)


class GateInHere:
    """A region in this process, whose gated functions add their arguments up, each as a digit of its own."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, region.REGION_BYTES, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory[: len(region.CODE)] = region.CODE
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._function = Gated(lambda first, second, third, fourth: first * 1000 + second * 100 + third * 10 + fourth)
        address = ctypes.cast(self._function, ctypes.c_void_p).value
        for index in range(len(region.GATED_FUNCTIONS)):
            struct.pack_into("<Q", self._memory, region._GATED_FUNCTIONS + 8 * index, address)
        struct.pack_into("<Q", self._memory, region._FRIDAS_MASK, region.BLOCKED & ~region._ALWAYS_UNBLOCKED)
        struct.pack_into("<I", self._memory, region._OWN_PID, os.getpid())

    def call(self, name: str) -> tuple[int, float]:
        """What the function returned, and how long that took."""
        at = region._GATES + 8 * region.GATED_FUNCTIONS.index(name)
        gate = Gated(self._base + struct.unpack_from("<Q", self._memory, at)[0])
        begun = time.monotonic()
        return gate(1, 2, 3, 4), time.monotonic() - begun

    def close(self, closed: int = 1) -> None:
        struct.pack_into("<I", self._memory, region._GATE_CLOSED, closed)

    def beat(self, number: int) -> None:
        struct.pack_into("<I", self._memory, region._HEARTBEAT, number)

    def note_frida(self, tid: int) -> None:
        struct.pack_into("<I", self._memory, region._FRIDAS_TID, tid)

    @property
    def inside(self) -> int:
        return int(struct.unpack_from("<I", self._memory, region._GATE_INSIDE)[0])


@pytest.fixture
def gate() -> GateInHere:
    return GateInHere()


@pytest.fixture
def later() -> Iterator[Callable[[float, Callable[[], None]], None]]:
    timers = []

    def begin(seconds: float, what: Callable[[], None]) -> None:
        timers.append(threading.Timer(seconds, what))
        timers[-1].start()

    yield begin
    for timer in timers:
        timer.join()


@pytest.mark.parametrize("name", region.GATED_FUNCTIONS)
def test_an_open_gate_passes_every_call_on_with_its_arguments(gate: GateInHere, name: str) -> None:
    result, took = gate.call(name)
    assert result == 1234
    assert took < AT_ONCE_S
    assert gate.inside == 0


def test_who_stands_at_a_closed_gate_goes_on_when_it_opens(
    gate: GateInHere, later: Callable[[float, Callable[[], None]], None]
) -> None:
    gate.close()
    seen: list[int] = []
    later(0.3, lambda: seen.append(gate.inside))
    later(0.6, lambda: gate.close(0))
    result, took = gate.call("fork")
    assert result == 1234
    assert 0.5 < took < PATIENCE_S
    assert seen == [1] and gate.inside == 0


def test_nobody_waits_for_a_host_that_is_gone(gate: GateInHere) -> None:
    gate.close()
    result, took = gate.call("dlopen")
    assert result == 1234
    assert PATIENCE_S - 0.1 < took < PATIENCE_S + 1


def test_where_the_host_is_gone_it_stays_closed_until_frida_is_gone_too(gate: GateInHere) -> None:
    gate.close()
    frida = threading.Thread(target=time.sleep, args=(PATIENCE_S + 1.5,))
    frida.start()
    assert frida.native_id is not None
    gate.note_frida(frida.native_id)
    result, took = gate.call("dlopen")
    assert result == 1234
    assert PATIENCE_S + 1.4 < took < PATIENCE_S + 2.5
    frida.join()
    assert PATIENCE_S - 0.1 < gate.call("dlopen")[1] < PATIENCE_S + 1


def test_a_sign_of_life_of_the_host_keeps_it_closed(
    gate: GateInHere, later: Callable[[float, Callable[[], None]], None]
) -> None:
    gate.close()
    later(1.5, lambda: gate.beat(7))
    assert gate.call("fork")[1] > 1.5 + PATIENCE_S - 0.2


def test_a_forked_child_passes_a_closed_gate(gate: GateInHere) -> None:
    gate.close()
    child = os.fork()
    if child == 0:
        result, took = gate.call("fork")
        os._exit(0 if result == 1234 and took < AT_ONCE_S else 1)
    assert os.waitpid(child, 0)[1] == 0
