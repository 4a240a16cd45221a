"""How the command begins where its libraries cannot be loaded, and what the package offers before they are."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from frida_rtetrack.errors import OutOfResources, naming_what_ran_out

COMMANDS = {
    "command": [str(Path(sys.executable).with_name("rtetrack-frida"))],
    "module": [sys.executable, "-m", "frida_rtetrack"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("most_mib", [200, 400, 700, 1000, 1300, 1500, 1900])
def test_too_little_address_space_is_said_in_a_line(command: list[str], most_mib: int) -> None:
    limit = (most_mib << 20, resource.RLIM_INFINITY)
    ran = subprocess.run(
        [*command, "--version"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 125
    assert ran.stderr.startswith(f"rtetrack-frida: rtetrack-frida may have {most_mib:,} MiB of address space")
    assert ran.stderr.count("\n") == 1
    assert ran.stdout == ""


def test_a_library_that_cannot_be_loaded_is_said_in_a_line() -> None:
    begin = "import sys; sys.modules['numpy'] = None; from frida_rtetrack.commands.entry import main; main()"
    ran = subprocess.run([sys.executable, "-c", begin], capture_output=True, text=True)
    assert ran.returncode == 125
    assert ran.stderr.startswith("rtetrack-frida: rtetrack-frida's libraries cannot be loaded: import of numpy")
    assert ran.stderr.count("\n") == 1


def test_what_the_package_offers_is_there_when_it_is_asked_for() -> None:
    asked = """
import sys, types
import frida_rtetrack
assert "numpy" not in sys.modules and "frida" not in sys.modules
assert set(frida_rtetrack.__all__) <= set(dir(frida_rtetrack))
assert frida_rtetrack.errors.RtetrackError is frida_rtetrack.RtetrackError
for name in frida_rtetrack.__all__:
    assert not isinstance(getattr(frida_rtetrack, name), types.ModuleType), name
from frida_rtetrack import *
assert Host.spawn and __version__ == frida_rtetrack.host.VERSION
try:
    frida_rtetrack.nothing
except AttributeError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("module 'frida_rtetrack' has no attribute 'nothing'\n", "")


def test_what_frida_ran_out_of_is_named_whatever_frida_calls_it() -> None:
    class InvalidArgumentError(Exception):
        """As Frida's are: of no class of Python's own."""

    with pytest.raises(OutOfResources, match="ran out of memory"), naming_what_ran_out():
        raise InvalidArgumentError("unable to parse agent: Failed to map fd: mmap() failed: Cannot allocate memory")
    with pytest.raises(InvalidArgumentError), naming_what_ran_out():
        raise InvalidArgumentError("something else")
