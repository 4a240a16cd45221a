"""A thread that stands behind the first instruction of a function when that is hooked goes on unharmed (tests/programs/midway.c)."""

from __future__ import annotations

import pytest
from tracked import Process, Runner

from frida_rtetrack import Host, Options

FUNCTIONS = [
    *("rte_malloc", "rte_malloc_socket", "rte_zmalloc", "rte_zmalloc_socket", "rte_calloc", "rte_calloc_socket"),
    *("rte_realloc", "rte_realloc_socket", "rte_free", "rte_memzone_reserve", "rte_memzone_reserve_aligned"),
    "rte_memzone_free",
]
ENTRY_BYTES = 16


def entry(program: Process, address: int) -> bytes:
    with open(f"/proc/{program.pid}/mem", "rb") as memory:
        memory.seek(address)
        return memory.read(ENTRY_BYTES)


def track_one_midway(runner: Runner, function: str, options: Options) -> None:
    program = runner.start("midway", function)
    first = int(program.wait_for("^midway (.)$").group(1))
    with Host.attach(program.pid, options) as host:
        addresses = [int(hook["address"], 16) for hook in host.hooks if hook["function"] == function]
        hooked = [entry(program, address) for address in addresses]
        program.tell("")
        program.wait_for("^through$")
    assert addresses
    for address, tracked in zip(addresses, hooked, strict=True):
        own = entry(program, address)
        assert tracked[:1] != own[:1]
        assert tracked[first:] == own[first:]
    program.tell("")
    assert program.finish() == 0, program.stderr


@pytest.mark.parametrize("function", FUNCTIONS)
def test_who_is_held_up_behind_a_first_instruction_goes_on_when_it_is_hooked(runner: Runner, function: str) -> None:
    track_one_midway(runner, function, Options(dump_on_bad_free=False))


@pytest.mark.parametrize("function", ["rte_malloc_socket", "rte_free", "rte_memzone_reserve"])
def test_and_when_it_is_listened_to(runner: Runner, function: str) -> None:
    track_one_midway(runner, function, Options(dump_on_bad_free=False, hook_ways=("attach",)))


@pytest.mark.parametrize("function", ["rte_malloc_socket", "rte_realloc_socket"])
def test_and_when_the_portable_engine_listens(runner: Runner, function: str) -> None:
    track_one_midway(runner, function, Options(dump_on_bad_free=False, engine="portable"))
