"""Compiles what the system's compiler makes better than TinyCC: run when the package is built, or by `make`.

    python frida_rtetrack/native/build.py [FOLDER]

writes engine-x86_64.so, the native engine as one freestanding ELF for the target, and map_kernel.so, the host's own. It
uses the standard library only: the package and what it needs may not be installed yet. Exit status 1 without a compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ENGINE = "engine-x86_64.so"
KERNEL = "map_kernel.so"
COMPILERS = ("gcc", "cc", "clang")
OPTIMIZATION = "-O2"

ENGINE_FLAGS = (
    # No libc, no constructors, nothing that the loader in the target would have to do.
    *("-std=gnu11", "-fPIC", "-shared", "-nostdlib", "-ffreestanding", "-fno-plt", "-Wl,-Bsymbolic,-z,now,--build-id=none"),
    # It runs inside of calls whose vector registers are the program's, below frames that are unwound by rbp, and tells
    # its own return addresses by where its functions lie: in the order of the source, each in one piece.
    *("-mgeneral-regs-only", "-fno-omit-frame-pointer", "-fno-optimize-sibling-calls", "-fno-asynchronous-unwind-tables"),
    # What the target has no run-time for.
    *("-fno-stack-protector", "-fcf-protection=none", "-fno-strict-aliasing"),
)  # fmt: skip
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
GCC_FLAGS = (
    *("-fno-reorder-functions", "-fno-toplevel-reorder", "-fno-reorder-blocks-and-partition", "-fno-ipa-icf"),
    *("-fno-ipa-cp-clone", "-fno-partial-inlining"),
)


def engine_sources() -> list[Path]:
    """Everything that the native engine is compiled from, in the order of its includes."""
    found: dict[str, None] = {}

    def add(name: str) -> None:
        if name not in found:
            found[name] = None
            for included in _INCLUDE.findall((HERE / name).read_text()):
                add(included)

    add("engine_native.c")
    return [HERE / name for name in found]


def source_digest() -> str:
    """Of the engine's source and flags: a compiled engine of another source is not used."""
    digest = hashlib.sha256(" ".join((*ENGINE_FLAGS, *GCC_FLAGS, OPTIMIZATION)).encode())
    for path in engine_sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def find_compiler() -> str | None:
    """The C compiler to use: $CC, or the first one there is."""
    chosen = os.environ.get("CC")
    return next((found for name in ((chosen,) if chosen else COMPILERS) if (found := shutil.which(name))), None)


def compiler_name(compiler: str) -> str:
    """As users know it: `gcc 12.2`."""
    text = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    name = "clang" if "clang" in text else "gcc" if re.search(r"\b(gcc|cc|GCC)\b", text) else os.path.basename(compiler)
    number = re.findall(r"\d+\.\d+(?=\.\d+|\s|-|$)", text)
    return f"{name} {number[-1]}" if number else name


def build_engine(compiler: str, output: Path) -> None:
    """Compiles the native engine. Raises CalledProcessError."""
    name = compiler_name(compiler)
    flags = (*ENGINE_FLAGS, *(GCC_FLAGS if name.startswith("gcc") else ()))
    subprocess.run(
        [
            *(compiler, OPTIMIZATION, *flags, f'-DRTETRACK_BUILT_BY="{name} {OPTIMIZATION}"'),
            *(f'-DRTETRACK_SOURCE="{source_digest()}"', "-o", str(output), str(HERE / "engine_native.c")),
        ],
        check=True,
    )


def build_kernel(compiler: str, output: Path) -> None:
    """Compiles the host's kernel of the tracking map. Raises CalledProcessError."""
    subprocess.run(
        [compiler, OPTIMIZATION, "-std=gnu11", "-shared", "-fPIC", "-o", str(output), str(HERE / "map_kernel.c")],
        check=True,
    )


def build(folder: Path) -> bool:
    """Compiles all that this machine can use into `folder`; False where something could not be compiled."""
    compiler = find_compiler()
    if compiler is None:
        print(
            "no C compiler: the engine will be compiled in the target by TinyCC, which is slower there", file=sys.stderr
        )
        return False
    try:
        if platform.machine() == "x86_64":
            build_engine(compiler, folder / ENGINE)
        if (HERE / "map_kernel.c").exists():
            build_kernel(compiler, folder / KERNEL)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{compiler} could not compile: {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(0 if build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE) else 1)
