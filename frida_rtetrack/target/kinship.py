"""Whether a pid that the session memory names is what it says: the kernel's word, not that of the program that wrote it.

A process is of the tracked ones if it has this very session memory mapped, which only they can hand on (a forked child,
also one whose parent has ended, inherits it; a stranger does not have it), and may do no more than they may.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

_ROOT = ("0", "0", "0", "0")


class Kinship:
    """Of one session: its memory, and the processes that were joined because the user said so."""

    def __init__(self, memory_fd: int, tracked: Callable[[], Iterable[int]]) -> None:
        """`memory_fd`: the session memory. `tracked()`: the pids of the processes that are known to be ours."""
        status = os.fstat(memory_fd)
        self._memory = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}", str(status.st_ino)
        self._tracked = tracked
        self._credentials: dict[int, tuple[tuple[str, ...], ...]] = {}

    def take_note(self) -> None:
        """Remembers what the tracked processes may do while they are there: one may end before a child of its is looked at."""
        self._own()

    def is_ours(self, pid: int) -> bool:
        """Whether `pid` exists, has the session memory mapped, and no other credentials than one of the tracked ones."""
        if pid <= 1 or pid == os.getpid():
            return False
        theirs = _credentials(pid)
        return theirs is not None and any(_may_become(own, theirs) for own in self._own()) and self._maps(pid)

    def _own(self) -> list[tuple[tuple[str, ...], ...]]:
        """What the tracked processes may do, or could when they were last seen."""
        for pid in self._tracked():
            found = _credentials(pid)
            if found is not None:
                self._credentials[pid] = found
        return list(self._credentials.values())

    def _maps(self, pid: int) -> bool:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        except OSError:
            return False
        return any(tuple(line.split(maxsplit=5)[3:5]) == self._memory for line in lines)


def has_memory(pid: int) -> bool:
    """False for a process that ends: its memory goes before it does, and whose it was cannot be told any more."""
    try:
        return bool(Path(f"/proc/{pid}/maps").read_bytes())
    except OSError:
        return False


def _credentials(pid: int) -> tuple[tuple[str, ...], ...] | None:
    """(uids, gids), each real, effective, saved and of the file system; None where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = dict(line.split(":", 1) for line in lines if line.startswith(("Uid:", "Gid:")))
    return tuple(found["Uid"].split()), tuple(found["Gid"].split())


def _may_become(own: tuple[tuple[str, ...], ...], theirs: tuple[tuple[str, ...], ...]) -> bool:
    """The same user and groups; or the superuser's process, which may have given its rights up in the child."""
    return own == theirs or own[0] == _ROOT
