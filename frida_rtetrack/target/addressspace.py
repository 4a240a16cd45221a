"""What lies at an address of the target: DPDK's heap, libc's, a stack, a module, nothing. From /proc/PID/maps.

The last look is kept, so that an address can still be judged when the program has died of it.
"""

from __future__ import annotations

import bisect
import os
from dataclasses import dataclass
from pathlib import Path

NULL_PAGE_BYTES = 0x10000
"""vm.mmap_min_addr's usual value: nothing is ever mapped below."""

ELEMENT_HEADER_BYTES = 128
_ELEMENT_STATE = 48
_ELEMENT_STATES = {0: "free", 1: "busy", 2: "pad"}


@dataclass(frozen=True, slots=True)
class HeapRegion:
    """Addresses that DPDK reserved for its heap on one NUMA socket (struct rte_memseg_list)."""

    base: int
    size_bytes: int
    socket: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """A line of /proc/PID/maps: [start, end)."""

    start: int
    end: int
    path: str


class AddressSpace:
    """The address space of one process."""

    def __init__(self, pid: int) -> None:
        """Of process `pid`; nothing is read yet."""
        self._pid = pid
        self._mappings: list[Mapping] = []
        self._starts: list[int] = []
        self._is_gone = False
        self.heap_regions: list[HeapRegion] = []
        """DPDK's, as far as they are known."""

    def refresh(self) -> None:
        """Reads the mappings again; keeps the last ones where the process is gone."""
        try:
            lines = Path(f"/proc/{self._pid}/maps").read_text(errors="replace").splitlines()
        except OSError:
            self._is_gone = True
            return
        mappings = []
        for line in lines:
            fields = line.split(maxsplit=5)
            start, end = fields[0].split("-")
            mappings.append(Mapping(int(start, 16), int(end, 16), fields[5] if len(fields) > 5 else ""))
        self._is_gone = not mappings
        if mappings:
            self._mappings = mappings
            self._starts = [mapping.start for mapping in mappings]

    def find(self, address: int) -> Mapping | None:
        """The mapping that `address` lies in."""
        at = bisect.bisect_right(self._starts, address) - 1
        return self._mappings[at] if at >= 0 and address < self._mappings[at].end else None

    def in_dpdk_heap(self, address: int) -> bool | None:
        """Whether DPDK reserved this address for its heap; None where its regions are not known."""
        if address < NULL_PAGE_BYTES:
            return False
        if not self.heap_regions:
            return None
        return any(region.base <= address < region.base + region.size_bytes for region in self.heap_regions)

    def socket(self, address: int) -> int | None:
        """The NUMA socket that DPDK's memory at `address` lies on."""
        for region in self.heap_regions:
            if region.base <= address < region.base + region.size_bytes:
                return region.socket
        return None

    def describe(self, address: int) -> str:
        """What lies there, as the end of "the address lies ..."."""
        if address < NULL_PAGE_BYTES:
            return "in the NULL page"
        mapping = self.find(address)
        if mapping is None and self._is_gone:
            return "in no mapping of the program that is known (unmapped, or mapped late: it ended before it could be looked at)"
        if mapping is None:
            return "in no mapping of the program (unmapped)"
        if mapping.path == "[heap]":
            return "in libc's heap (malloc, calloc)"
        if mapping.path == "[stack]":
            return "on the main thread's stack"
        if not mapping.path:
            return (
                "in an anonymous mapping that is not DPDK's (libc's malloc has such for threads and for large blocks)"
            )
        return f"in {mapping.path}"

    def element_state(self, address: int) -> str | None:
        """What DPDK's element header before the block at `address` says now: busy, free or pad; None if there is none.

        Layout: DPDK lib/eal/common/malloc_elem.h, 128 bytes before the block, heap at 0, state in 3 bits at 48.
        """
        if not self.in_dpdk_heap(address) or address % 64:
            return None
        try:
            fd = os.open(f"/proc/{self._pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            header = os.pread(fd, ELEMENT_HEADER_BYTES, address - ELEMENT_HEADER_BYTES)
        except OSError:
            return None
        finally:
            os.close(fd)
        if len(header) < ELEMENT_HEADER_BYTES or not any(header[:8]):
            return None
        return _ELEMENT_STATES.get(header[_ELEMENT_STATE] & 7)
