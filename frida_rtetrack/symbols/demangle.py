"""Linker names -> names as a person writes them: C++ (Itanium ABI), Rust legacy and Rust v0, by LLVM's demangler.

`pydemumble` binds it, for x86-64 and arm64. Also looked at: `pycxxfilt` (the same, without Rust's legacy names), `cxxfilt`
(calls libstdc++ through ctypes: no Rust), `symbolic` (no demangler in its Python bindings).
"""

from __future__ import annotations

import functools
import re

import pydemumble

_CLONE = re.compile(r" \((\.[\w.]+)\)\Z")
_LONGEST_NAME = 4096
"""Bytes; what is longer is shown as it is. A name comes from the program's file, and may be anything."""


@functools.lru_cache(maxsize=1 << 16)
def demangle(name: str) -> str:
    """`_ZN2ns1fEi` -> `ns::f(int)`, `_RNvC1r4main` -> `r::main`; a C name, or one that is not understood, as it is.

    What the compiler appended is shown as c++filt and gdb show it: `f(int) [clone .isra.0]`.
    """
    if not name.startswith(("_Z", "_R")) or len(name) > _LONGEST_NAME:
        return name
    try:
        return _CLONE.sub(r" [clone \1]", pydemumble.demangle(name)) or name
    except (MemoryError, TypeError):  # larger than can be shown; bytes that are no text
        return name
