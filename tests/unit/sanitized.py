"""Builds C of tests/native with the system's compiler and its sanitizers."""

from __future__ import annotations

import subprocess
from pathlib import Path

FLAGS = ("-O1", "-g", "-w", "-D_GNU_SOURCE", "-pthread", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def built(source: Path, folder: Path) -> Path:
    """The program, in `folder`."""
    program = folder / source.stem
    subprocess.run(["gcc", *FLAGS, "-o", program, source], check=True)
    return program
