"""Where another process may keep pointers, and reading it: by process_vm_readv(2), which runs nothing in that process,
stops none of its threads and, unlike /proc/PID/mem, never reads a device's registers.

Pages that were never touched are left out (/proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst): looking at one
would make the program larger.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.errors import NotLive, RtetrackError, TargetEnded
from frida_rtetrack.target.process import SESSION_NAME, not_permitted

PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_PAGEMAP_IN_USE = np.uint64(3 << 62)
"""Present, or swapped."""
_PIECE_BYTES = 16 << 20
_RANGES_AT_ONCE = 512
"""At most IOV_MAX (1024)."""
DEVICES = ("/dev/", "/sys/")
PLAIN_DEVICES = ("/dev/shm/", "/dev/hugepages", "/dev/zero")
NOT_THE_PROGRAMS = (f"/memfd:{SESSION_NAME}", "/memfd:frida-")

Ranges = NDArray[np.uint64]
"""[start, end) addresses, shape (n, 2), in order, none touching the next."""


def as_ranges(pairs: Sequence[tuple[int, int]] | NDArray[np.uint64]) -> Ranges:
    """`pairs` of [start, end) as Ranges: in order, joined where they touch or overlap, the empty ones left out."""
    given = np.array(pairs, np.uint64).reshape(-1, 2)
    given = given[given[:, 0] < given[:, 1]]
    given = given[np.argsort(given[:, 0], kind="stable")]
    if not len(given):
        return given
    reach = np.maximum.accumulate(given[:, 1])
    first = np.flatnonzero(np.append(True, given[1:, 0] > reach[:-1]))
    return np.column_stack([given[first, 0], np.maximum.reduceat(given[:, 1], first)])


def without(ranges: Ranges, others: Ranges) -> Ranges:
    """What of `ranges` is in none of `others`."""
    left = []
    for start, end in ranges.tolist():
        at = start
        first = int(np.searchsorted(others[:, 1], np.uint64(start), side="right"))
        for cut_start, cut_end in others[first:].tolist():
            if cut_start >= end:
                break
            left.append((at, cut_start))
            at = cut_end
        left.append((at, end))
    return as_ranges(left)


def common(ranges: Ranges, others: Ranges) -> Ranges:
    """What is in one of `ranges` and in one of `others`."""
    return without(ranges, without(ranges, others))


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class ProcessMemory:
    """The memory of process `pid`. Every method raises TargetEnded where that is gone, NotPermitted where it may not be read."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.process_vm_readv.restype = ctypes.c_ssize_t
        self._libc.process_vm_readv.argtypes = [
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
        ]
        try:
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _problem(pid, error.errno) from None
        self.read_bytes = 0
        """Read so far."""

    def __enter__(self) -> ProcessMemory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pagemap)

    def in_use(self, ranges: Ranges) -> Iterator[tuple[int, int]]:
        """The parts of `ranges` whose pages have been touched, in order, at most _PIECE_BYTES each; whole words."""
        for start, end in ranges.tolist():
            for piece in range(start, end, _PIECE_BYTES):
                yield from self._touched(piece, min(piece + _PIECE_BYTES, end))

    def _touched(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        first, last = start // PAGE_BYTES, -(-end // PAGE_BYTES)
        try:
            raw = os.pread(self._pagemap, 8 * (last - first), 8 * first)
        except OSError as error:
            raise _problem(self.pid, error.errno) from None
        if len(raw) < 8 * (last - first):  # there is no memory behind the file any more
            raise _problem(self.pid, errno.ESRCH)
        used = np.frombuffer(raw, np.uint64) & _PAGEMAP_IN_USE != 0
        edges = np.flatnonzero(np.diff(used, prepend=False, append=False))
        for a, b in ((first + edges.reshape(-1, 2)) * PAGE_BYTES).tolist():
            yield (max(a, start) + 7) & ~7, min(b, end) & ~7

    def read(self, address: int, size: int) -> bytes:
        """Up to `size` bytes at `address`."""
        buffer = ctypes.create_string_buffer(size)
        got = self._read_into(_Iovec(ctypes.addressof(buffer), size), (_Iovec * 1)(_Iovec(address, size)))
        return buffer.raw[:got]

    def _read_into(self, local: _Iovec, remote: ctypes.Array[_Iovec]) -> int:
        """How many bytes were read before the first page that cannot be."""
        got = int(
            self._libc.process_vm_readv(self.pid, ctypes.addressof(local), 1, ctypes.addressof(remote), len(remote), 0)
        )
        if got < 0 and ctypes.get_errno() != errno.EFAULT:
            raise _problem(self.pid, ctypes.get_errno())
        return max(got, 0)

    def words(self, ranges: Ranges) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
        """(addresses, 64-bit words at them), each (n,), of what of `ranges` is in use and can be read."""
        batch: list[tuple[int, int]] = []
        size = 0
        for part in self.in_use(ranges):
            if batch and (size + part[1] - part[0] > _PIECE_BYTES or len(batch) == _RANGES_AT_ONCE):
                yield from self._read(batch)
                batch, size = [], 0
            if part[0] < part[1]:
                batch.append(part)
                size += part[1] - part[0]
        if batch:
            yield from self._read(batch)

    def _read(self, parts: list[tuple[int, int]]) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
        while parts:
            buffer = np.empty(sum(end - start for start, end in parts) // 8, np.uint64)
            local = _Iovec(buffer.ctypes.data, buffer.nbytes)
            remote = (_Iovec * len(parts))(*(_Iovec(start, end - start) for start, end in parts))
            got = self._read_into(local, remote) & ~7
            self.read_bytes += got
            if got:
                addresses = np.concatenate([np.arange(start, end, 8, dtype=np.uint64) for start, end in parts])
                yield addresses[: got // 8], buffer[: got // 8]
            parts = _behind(parts, got)


def _behind(parts: list[tuple[int, int]], got: int) -> list[tuple[int, int]]:
    """What is left of `parts` when `got` bytes of them were read and the page behind could not be."""
    for number, (start, end) in enumerate(parts):
        if got < end - start:
            after = ((start + got) // PAGE_BYTES + 1) * PAGE_BYTES
            return ([(after, end)] if after < end else []) + parts[number + 1 :]
        got -= end - start
    return []


def writable_of(pid: int) -> Ranges:
    """What process `pid` can write, but for devices and the memory of sessions and of Frida.

    Raises TargetEnded, NotPermitted.
    """
    found = []
    try:
        with open(f"/proc/{pid}/maps", errors="replace") as file:
            for line in file:
                fields = line.split(maxsplit=5)
                path = fields[5].strip() if len(fields) > 5 else ""
                if fields[1].startswith("rw") and _may_hold_pointers(path):
                    start, end = fields[0].split("-")
                    found.append((int(start, 16), int(end, 16)))
    except OSError as error:
        raise _problem(pid, error.errno) from None
    if not found:  # so it is of one that is ending
        raise _problem(pid, errno.ESRCH)
    return as_ranges(found)


def _problem(pid: int, number: int | None) -> RtetrackError:
    if number in (errno.ESRCH, errno.ENOENT):
        return TargetEnded(f"Process {pid} has ended.")
    if number in (errno.EPERM, errno.EACCES):
        return not_permitted(pid)
    return NotLive(f"The memory of process {pid} cannot be read: {os.strerror(number or 0)}.")


def _may_hold_pointers(path: str) -> bool:
    if path.startswith(NOT_THE_PROGRAMS):
        return False
    return not path.startswith(DEVICES) or path.startswith(PLAIN_DEVICES)
