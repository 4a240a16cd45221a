"""Files of a program that ran elsewhere, found by the build-id that was recorded: in directories that a user names, and by
elfutils' `debuginfod-find` where that is installed and DEBUGINFOD_URLS says whom to ask.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from frida_rtetrack.symbols.elf import ElfError, ElfFile, open_elf

FIND = "debuginfod-find"
FIND_SECONDS = 120.0
"""It has a limit of its own, DEBUGINFOD_TIMEOUT, for a server that says nothing."""
FILES_AT_MOST = 100_000
_BUILD_ID_BYTES = range(8, 65)


class Sources:
    """Looks for files by build-id. What is found and is not what was recorded is not used, and said in `notes`."""

    def __init__(self, directories: Sequence[Path] = (), *, ask_debuginfod: bool = False) -> None:
        """`directories` are looked through, with all that is below them, when the first file is asked for."""
        self.directories = tuple(directories)
        self.notes: list[str] = []
        """Sentences for the reader, each once."""
        self.ask_debuginfod = ask_debuginfod and bool(os.environ.get("DEBUGINFOD_URLS", "").strip())
        self._find = shutil.which(FIND) if self.ask_debuginfod else None
        self._index: dict[bytes, list[str]] | None = None
        self._named: dict[str, list[tuple[str, bytes | None]]] = {}
        self._lock = threading.Lock()

    def note(self, text: str) -> None:
        """Adds a sentence."""
        if text not in self.notes:
            self.notes.append(text)

    def files(self, build_id: bytes | None, path: str) -> Iterator[ElfFile]:
        """The program's file and its debug file, whichever are there, those with debug information first.

        `path`: where the program had it.
        """
        found = [] if build_id is None else self._in_directories(build_id)
        found.sort(key=lambda file: not file.has_dwarf)
        if not found and self.directories:
            self._tell_of_others(build_id, os.path.basename(path))
        yield from found
        if build_id is not None and not any(file.has_dwarf for file in found):
            yield from self._asked("debuginfo", build_id)

    def executable(self, build_id: bytes | None) -> ElfFile | None:
        """The program's file from debuginfod, for one of which nothing else was found."""
        return None if build_id is None else next(self._asked("executable", build_id), None)

    def _in_directories(self, build_id: bytes) -> list[ElfFile]:
        opened = (_open(path) for path in self._indexed().get(build_id, ()))
        return [file for file in opened if file is not None and file.build_id == build_id]

    def _indexed(self) -> dict[bytes, list[str]]:
        with self._lock:
            if self._index is None:
                self._index = {}
                for path, identity in self._all_files():
                    self._named.setdefault(os.path.basename(path), []).append((path, identity))
                    if identity is not None:
                        self._index.setdefault(identity, []).append(path)
            return self._index

    def _all_files(self) -> Iterator[tuple[str, bytes | None]]:
        """(path, build-id) of every ELF file."""
        left = FILES_AT_MOST
        for directory in self.directories:
            for folder, _, names in os.walk(directory):
                for name in names:
                    left -= 1
                    if left < 0:
                        self.note(f"Only {FILES_AT_MOST:,} files of --symbol-path were looked at.")
                        return
                    path = os.path.join(folder, name)
                    file = _open(path)
                    if file is not None:
                        yield path, file.build_id

    def _tell_of_others(self, build_id: bytes | None, name: str) -> None:
        self._indexed()
        for path, other in self._named.get(name, ()):
            had = "no build-id was recorded of it" if build_id is None else f"the one that ran has {build_id.hex()}"
            has = "none" if other is None else other.hex()
            self.note(f"{path} is not used: its build-id is {has}, {had}.")

    def _asked(self, what: str, build_id: bytes) -> Iterator[ElfFile]:
        if self._find is None or not self.ask_debuginfod or len(build_id) not in _BUILD_ID_BYTES:
            return
        try:
            done = subprocess.run(
                [self._find, what, build_id.hex()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=FIND_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            self.note(f"{FIND} did not answer within {FIND_SECONDS:.0f} seconds, and is asked no more.")
            self._find = None
            return
        path = os.fsdecode(done.stdout).strip()
        file = _open(path) if done.returncode == 0 and path else None
        if file is None:
            return
        if file.build_id != build_id:
            self.note(f"What {FIND} gave for the build-id {build_id.hex()} has another one, and is not used.")
            return
        yield file


def _open(path: str) -> ElfFile | None:
    """The ELF file at `path`, None where there is none."""
    try:
        return open_elf(path)
    except (OSError, ValueError, ElfError):
        return None
