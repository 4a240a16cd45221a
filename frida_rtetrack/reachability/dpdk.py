"""What DPDK itself writes down of its heap's pages, which holds no block.

For each page there is a struct rte_memseg with its address, so that every block over the beginning of a page would be
pointed to. The arrays are found from outside, by the struct rte_memseg_list that leads to each.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from frida_rtetrack.reachability.memory import ProcessMemory, Ranges, as_ranges
from frida_rtetrack.target.addressspace import HeapRegion

# struct rte_memseg_list (lib/eal/include/rte_eal_memconfig.h): base_va 0, page_sz 8, len 24, memseg_arr 40; in that, a
# struct rte_fbarray (rte_fbarray.h): len 68, elt_sz 72, data 80. The same since DPDK 18.05.
_LIST = struct.Struct("<QQ8xQ8x64xIII4xQ")
_MOST_FOUND = 4096
_MOST_ELEMENT_BYTES = 256


def page_tables(memory: ProcessMemory, writable: Ranges, regions: Sequence[HeapRegion]) -> Ranges:
    """The arrays of struct rte_memseg that describe `regions` in a process; what does not fit together is left out."""
    sizes = {region.base: region.size_bytes for region in regions}
    bases = np.array(list(sizes), np.uint64)
    found = []
    for at, words in memory.words(writable):
        for where in at[np.isin(words, bases)].tolist()[:_MOST_FOUND]:
            raw = memory.read(where, _LIST.size)
            if len(raw) == _LIST.size:
                base, page_bytes, size_bytes, _, pages, element_bytes, data = _LIST.unpack(raw)
                if (
                    page_bytes
                    and pages * page_bytes == size_bytes == sizes.get(base)
                    and element_bytes <= _MOST_ELEMENT_BYTES
                ):
                    found.append((data, data + pages * element_bytes))
    return as_ranges(found)
