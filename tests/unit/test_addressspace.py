"""What lies at an address of another process."""

from __future__ import annotations

import subprocess

from frida_rtetrack.target.addressspace import AddressSpace

NOWHERE = 0x2_0000


def test_of_a_program_that_has_ended_nothing_is_claimed_that_was_not_seen() -> None:
    program = subprocess.Popen(["sleep", "60"])
    space = AddressSpace(program.pid)
    space.refresh()
    assert space.describe(NOWHERE) == "in no mapping of the program (unmapped)"
    known = next(mapping for mapping in space._mappings if mapping.path == "[stack]")
    program.kill()
    program.wait()
    space.refresh()
    assert "it ended before it could be looked at" in space.describe(NOWHERE)
    assert space.describe(known.start) == "on the main thread's stack"
