"""The machine code that runs in the program is what standin.S says, and the offsets that the host uses are its."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from frida_rtetrack.target.arrival import region
from frida_rtetrack.target.arrival.ptrace import NO_SYSTEM_CALL, REGISTERS, Registers

SOURCE = Path(region.__file__).parent / "standin.S"


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None or shutil.which("objcopy") is None:
        pytest.skip("no assembler")
    output = tmp_path_factory.mktemp("standin") / "standin.o"
    subprocess.run(["gcc", "-c", SOURCE, "-o", output], check=True)
    return output


def test_the_machine_code_is_that_of_the_source(assembled: Path) -> None:
    binary = assembled.with_suffix(".bin")
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", assembled, binary], check=True)
    assert binary.read_bytes() == region.CODE


@pytest.mark.parametrize(
    ("label", "offset"),
    [
        ("pthread_create", region._FUNCTIONS),
        ("created", region._CREATED),
        ("lent", region._LENT),
        ("standin_tid", region._TID),
        ("command", region._COMMAND),
        ("state", region._STATE),
        ("heartbeat", region._HEARTBEAT),
        ("patience_ms", region._PATIENCE),
        ("lender_patience_ms", region._LENDER_PATIENCE),
        ("mask", region._MASK),
        ("lender_regs", region._LENDER_REGISTERS),
        ("standin_mask", region._STANDIN_MASK),
        ("dlopen", region._GATED_FUNCTIONS),
        ("gates", region._GATES),
        ("_IO_list_lock", region._LIST_LOCK),
        ("fridas_mask", region._FRIDAS_MASK),
        ("gate_closed", region._GATE_CLOSED),
        ("gate_inside", region._GATE_INSIDE),
        ("gate_in_use", region._GATE_IN_USE),
        ("ask_locks", region._ASK_LOCKS),
        ("asked_locks", region._ASKED_LOCKS),
        ("own_pid", region._OWN_PID),
        ("fridas_tid", region._FRIDAS_TID),
    ],
)
def test_the_offsets_are_those_of_the_source(assembled: Path, label: str, offset: int) -> None:
    listing = subprocess.run(["nm", assembled], check=True, capture_output=True, text=True).stdout
    addresses = {name: int(address, 16) for address, _, name in (line.split() for line in listing.splitlines())}
    assert addresses[label] == offset


def registers(**values: int) -> Registers:
    return Registers(dict.fromkeys(REGISTERS, 0) | {"orig_rax": NO_SYSTEM_CALL} | values)


@pytest.mark.parametrize(("code", "number"), [(-512, 0), (-513, 0), (-514, 0), (-516, 219)])
def test_an_interrupted_system_call_is_done_again_as_the_kernel_would(code: int, number: int) -> None:
    stopped = registers(rax=code & (1 << 64) - 1, orig_rax=0, rip=0x1002)
    again = region.restarted(stopped)
    assert (again["rip"], again["rax"]) == (0x1000, number)


def test_what_was_interrupted_in_no_system_call_goes_on_where_it_was() -> None:
    computing = registers(rax=(1 << 64) - 512, rip=0x1002)
    assert region.restarted(computing) is computing
    done = registers(rax=7, orig_rax=0, rip=0x1002)
    assert region.restarted(done) is done
