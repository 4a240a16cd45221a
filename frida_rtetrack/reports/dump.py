"""The dump file: a CSV line for every live allocation, written whole or not at all.

    Addr,Size,Type,Backtrace
    0x140c27f80,81920,rte_service_core_states,/usr/lib/librte_eal.so.23(rte_service_init+0x4c) [0x7f0c2a1d0e4c] ...

Fields are quoted as RFC 4180 says; lines end in "\\n", as rteMallocTrack wrote them. A type is the program's own bytes,
in whatever encoding; only what would command a terminal that the file is shown on is written as `\\x1b`.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.errors import RtetrackError
from frida_rtetrack.newfile import new_file_beside
from frida_rtetrack.symbols.visible import visible_text

HEADER = b"Addr,Size,Type,Backtrace"
UNKNOWN_TYPE = b"<unknown>"
NO_BACKTRACE = "<NA>"

_ROWS_PER_WRITE = 1 << 9
"""Some hundred KiB: pieces of several MiB would be memory fresh from the kernel each time."""
_PROBE_BYTES = 1 << 16
_NEEDS_QUOTES = re.compile(rb'[",\r\n]')
_FRAME = re.compile(r"(.*?\[0x[0-9a-f]+\])(?: |\Z)", re.DOTALL)
_HINTS = {
    errno.ENOENT: "Create its directory, or name another file with --dump-file.",
    errno.ENOSPC: "Free some space, or name a file on another disk with --dump-file.",
    errno.EPERM: "It belongs to another user: name another file with --dump-file.",
}


class DumpError(RtetrackError):
    """The dump file cannot be written. Whatever was at its path is still there, unchanged."""

    HINT = "Name another file with --dump-file."


@dataclass(frozen=True, slots=True)
class DumpRow:
    """A line of a dump. `type` and `backtrace` keep bytes that are not UTF-8 as surrogates (PEP 383)."""

    address: int
    size: int
    type: str
    backtrace: str


def write_dump(
    path: str | os.PathLike[str],
    blocks: NDArray[np.void],
    label_text: Callable[[int], bytes | None],
    stack_text: Callable[[int], str],
) -> None:
    """Writes the live blocks to `path`, largest first, equal ones by address.

    A new file, mode 0600, takes the place of what was there once it is whole. A symlink at `path` is replaced, never
    followed. Anything but a regular file, or a link to one, is left alone.

    Args:
        blocks: shape (live blocks,), with unsigned fields address, size_bytes, label and stack; others are ignored.
        label_text: a label's text, None for a NULL type. A C string: it ends at its first NUL.
        stack_text: a stack's formatted frames; called once for each distinct stack but 0, which has none.

    Raises:
        DumpError: the file cannot be written; nothing is left behind.
    """
    with _folder_of(path) as (directory_fd, name), new_file_beside(name, folder_fd=directory_fd) as (file, temporary):
        _write_rows(file, blocks, label_text, stack_text)
        file.close()
        os.replace(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)


def check_dump(path: str | os.PathLike[str]) -> None:
    """Raises DumpError where `write_dump` could not write there now, a full disk included. Leaves nothing behind."""
    with _folder_of(path) as (directory_fd, name), new_file_beside(name, folder_fd=directory_fd) as (file, temporary):
        file.write(bytes(_PROBE_BYTES))
        file.close()
        os.unlink(temporary, dir_fd=directory_fd)


def is_dump(path: str | os.PathLike[str]) -> bool:
    """Whether the file begins as a dump does."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return file.read(len(HEADER)) == HEADER
    except OSError:
        return False


def read_dump(path: str | os.PathLike[str]) -> list[DumpRow]:
    """The rows of a dump file, in its order.

    Raises:
        ValueError: it is no dump file.
        OSError: it cannot be read.
    """
    limit = csv.field_size_limit(1 << 30)  # a backtrace may be longer than the module's 128 KiB
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, strict=True)
            if next(rows, None) != HEADER.decode().split(","):
                raise ValueError(f"{os.fspath(path)} is no dump: it does not begin with {HEADER.decode()}")
            return [DumpRow(int(address, 16), int(size), kind, backtrace) for address, size, kind, backtrace in rows]
    except csv.Error as error:
        raise ValueError(f"{os.fspath(path)} is damaged: {error}") from error
    finally:
        csv.field_size_limit(limit)


def split_frames(backtrace: str) -> list[str]:
    """The frames of a dump's backtrace, innermost first; [] for `<NA>`.

    C++ names have spaces, so a space alone does not end a frame: `[0xADDRESS]` and a space, or the end, does.
    """
    return _FRAME.findall(backtrace)


@contextlib.contextmanager
def _folder_of(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """The descriptor of the directory that `path` lies in, and its name there, which may be replaced. Raises DumpError."""
    directory, name = os.path.split(os.path.abspath(path))
    try:
        directory_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _dump_error(path, error) from error
    try:
        _check_replaceable(path, name, directory_fd)
        yield directory_fd, name
    except OSError as error:
        raise _dump_error(path, error) from error
    finally:
        os.close(directory_fd)


def _write_rows(
    file: BinaryIO,
    blocks: NDArray[np.void],
    label_text: Callable[[int], bytes | None],
    stack_text: Callable[[int], str],
) -> None:
    labels, stacks = np.unique(blocks["label"]), np.unique(blocks["stack"])
    label_of, stack_of = np.searchsorted(labels, blocks["label"]), np.searchsorted(stacks, blocks["stack"])
    types = [_quoted(_type_bytes(label_text(int(label)))) + b"," for label in labels]
    backtraces = [_quoted(_backtrace_bytes(int(stack), stack_text)) + b"\n" for stack in stacks]

    file.write(HEADER + b"\n")
    order = np.lexsort((blocks["address"], ~blocks["size_bytes"].astype(np.uint64)))
    for start in range(0, len(order), _ROWS_PER_WRITE):
        rows = order[start : start + _ROWS_PER_WRITE]
        numbers = zip(blocks["address"][rows].tolist(), blocks["size_bytes"][rows].tolist(), strict=True)
        lines = zip(
            map(b"%#x,%d,".__mod__, numbers),
            map(types.__getitem__, label_of[rows].tolist()),
            map(backtraces.__getitem__, stack_of[rows].tolist()),
            strict=True,
        )
        file.write(b"".join(itertools.chain.from_iterable(lines)))


def _type_bytes(text: bytes | None) -> bytes:
    if text is None:
        return UNKNOWN_TYPE
    return _visible_bytes(text.split(b"\0", 1)[0].decode("utf-8", "surrogateescape"))


def _backtrace_bytes(stack: int, stack_text: Callable[[int], str]) -> bytes:
    text = stack_text(stack) if stack else NO_BACKTRACE
    return _visible_bytes(text or NO_BACKTRACE)


def _visible_bytes(text: str) -> bytes:
    return visible_text(text).encode("utf-8", "surrogateescape")


def _quoted(field: bytes) -> bytes:
    """A CSV field, RFC 4180 section 2: in quotes, with quotes doubled, where it has to be."""
    return b'"' + field.replace(b'"', b'""') + b'"' if _NEEDS_QUOTES.search(field) else field


def _check_replaceable(path: str | os.PathLike[str], name: str, directory_fd: int) -> None:
    """Refuses to put a file in the place of a directory, device, pipe or socket, be it through a link (/dev/stdout), or
    of another user's file in a sticky directory (the kernel would refuse that as well, once all is written)."""
    try:
        there = os.lstat(name, dir_fd=directory_fd)
        mode = there.st_mode
        if stat.S_ISLNK(mode):
            leads_to_process = os.readlink(name, dir_fd=directory_fd).startswith("/proc/")
            mode = stat.S_IFIFO if leads_to_process else os.stat(name, dir_fd=directory_fd).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise DumpError(f"Cannot write the dump {os.fspath(path)}: there is something that is no regular file.")
    folder = os.stat(directory_fd)
    if folder.st_mode & stat.S_ISVTX and os.geteuid() not in (0, there.st_uid, folder.st_uid):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def _dump_error(path: str | os.PathLike[str], error: OSError) -> DumpError:
    hint = _HINTS.get(error.errno or 0)
    return DumpError(f"Cannot write the dump {os.fspath(path)}: {error.strerror or error}.", hint)
