"""A line of the program's source, where the file is at hand: read as what it is, a path that the program's debug information gave.

Only regular files with the name of a source, that are no links, and that anybody may read where we are root; never one that is
newer than the program: it may read differently now.
"""

from __future__ import annotations

import functools
import os
import stat

from frida_rtetrack.symbols.symbolizer import Frame

SUFFIXES = (
    ".c",
    ".cc",
    ".cpp",
    ".cxx",
    ".c++",
    ".h",
    ".hh",
    ".hpp",
    ".hxx",
    ".inl",
    ".inc",
    ".ipp",
    ".rs",
    ".go",
    ".S",
)
READ_AT_MOST = 1 << 22
SHOWN_AT_MOST = 160
FILES_KEPT = 256


def line_of(frame: Frame) -> str | None:
    """The source line of a frame, without its indent; None where it is not known, or not to be trusted."""
    if not frame.file or not frame.line or not frame.module_path or not os.path.isabs(frame.file):
        return None
    try:
        lines = _lines(frame.file, _written_ns(frame.module_path))
        line = lines[frame.line - 1] if frame.line <= len(lines) else b""
    except (OSError, ValueError):  # a path may hold anything, a zero byte too
        return None
    return line.decode(errors="replace").expandtabs(4).strip()[:SHOWN_AT_MOST] or None


@functools.lru_cache(FILES_KEPT)
def _written_ns(path: str) -> int:
    """When a program's file was written. Raises OSError where it is no file."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is no file")
    return status.st_mtime_ns


@functools.lru_cache(FILES_KEPT)
def _lines(path: str, newest_ns: int) -> list[bytes]:
    """The lines of a source that was written at `newest_ns` at the latest; [] where it is not such a file. Raises OSError."""
    if not path.endswith(SUFFIXES) or not _is_plain(os.lstat(path), newest_ns):
        return []
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not _is_plain(os.fstat(descriptor), newest_ns):
            return []
        return file.read(READ_AT_MOST).split(b"\n")


def _is_plain(status: os.stat_result, newest_ns: int) -> bool:
    readable = os.geteuid() != 0 or bool(status.st_mode & stat.S_IROTH)
    return stat.S_ISREG(status.st_mode) and readable and status.st_mtime_ns <= newest_ns
