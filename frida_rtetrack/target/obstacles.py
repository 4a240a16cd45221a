"""What a program is not given that an attach needs: looked at before it is touched, and refused or warned of."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

from frida_rtetrack.errors import ArrivalRefused, OutOfResources
from frida_rtetrack.target import ownprocess, process
from frida_rtetrack.target.confinement import forbidden

DESCRIPTORS = 24
"""That Frida and the agent open at the most, while they come."""
OWN_DESCRIPTORS = 64
ADDRESS_SPACE_MIB = 700
"""Beside the ring, at the most: Frida, which maps the modules to read them, its threads, the session memory's tables."""
READ_SECONDS = 20.0


def check(pid: int, buffer_mib: int, warn: Callable[[str], None]) -> None:
    """Raises what stands in the way of attaching to `pid`, and has `warn` say what may."""
    process.check_attachable(pid)
    check_limits(pid, buffer_mib)
    warning = check_seccomp(pid)
    if warning is not None:
        warn(warning)


def check_own_limits() -> None:
    """Raises OutOfResources where this process may not open what Frida needs here."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most != resource.RLIM_INFINITY and most < OWN_DESCRIPTORS:
        raise OutOfResources(
            f"rtetrack-frida may have {most} files open at the most, and needs {OWN_DESCRIPTORS}.",
            f"Start it with more: `ulimit -n {2 * OWN_DESCRIPTORS}`.",
        )


def check_limits(pid: int, buffer_mib: int) -> None:
    """Raises ArrivalRefused where `pid` may not open, or map, what an attach needs."""
    try:
        opened = len(os.listdir(f"/proc/{pid}/fd"))
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        most_opened, most_bytes = (
            resource.prlimit(pid, which)[0] for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)
        )
    except (OSError, ValueError):
        return  # what follows says why it is not ours to see
    if most_opened != resource.RLIM_INFINITY and opened + DESCRIPTORS > most_opened:
        raise ArrivalRefused(
            f"Process {pid} may have {most_opened} files open at the most and has {opened}; an attach needs {DESCRIPTORS} more.",
            f"Raise its limit: `prlimit --pid {pid} --nofile={opened + 2 * DESCRIPTORS}:`.",
        )
    mapped, needed = pages * resource.getpagesize() >> 20, buffer_mib + ADDRESS_SPACE_MIB
    if most_bytes != resource.RLIM_INFINITY and mapped + needed > most_bytes >> 20:
        raise ArrivalRefused(
            f"Process {pid} may have {most_bytes >> 20:,} MiB of address space at the most (RLIMIT_AS) and has {mapped:,}; an "
            f"attach needs {needed} more.",
            f"Raise its limit: `prlimit --pid {pid} --as={(mapped + 2 * needed) << 20}:`; a smaller --buffer needs less.",
        )


def check_seccomp(pid: int) -> str | None:
    """Raises ArrivalRefused where a seccomp filter of the program's own forbids what an attach needs.

    A warning where the filter cannot be read. One that this process is under as well, as in a container, is no obstacle.
    """
    filters = _filters_of(pid)
    if not filters or filters <= _filters_of(os.getpid()) or platform.machine() != "x86_64":
        return None
    command = ownprocess.command("frida_rtetrack.target.confinement", pid)
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=READ_SECONDS)
    lines = said.stdout.split("\n")[:-1]
    if said.returncode or not lines or lines[0].startswith("unread"):
        why = lines[0].removeprefix("unread ") if lines else "nothing is known"
        return (
            f"Process {pid} is under a seccomp filter that could not be read ({why}): where it forbids memfd_create, openat or "
            "socket, coming into it fails or kills it."
        )
    bad = [f"{name} {what}" for name, what in forbidden([bytes.fromhex(line) for line in lines])]
    if bad:
        raise ArrivalRefused(
            f"Process {pid} is under a seccomp filter that an attach would not pass: {', '.join(bad)}. It was left as it is.",
            "Allow these in its sandbox while you look for a leak (systemd: SystemCallFilter=).",
        )
    return None


def _filters_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    found = dict(line.split(":\t", 1) for line in lines if line.startswith("Seccomp"))
    return int(found.get("Seccomp_filters", "1")) if found.get("Seccomp") == "2" else 0
