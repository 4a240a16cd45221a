"""A file of a user's that is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from frida_rtetrack.errors import RtetrackError


class OutputError(RtetrackError):
    """A file that was asked for cannot be written. Whatever was at its path is still there, unchanged."""

    HINT = "Give another path."


@contextlib.contextmanager
def whole(path: Path, *, force: bool = True) -> Iterator[BinaryIO]:
    """A file to write into: mode 0600, it takes the place of what was at `path` once the block ends well.

    A link at `path` is replaced, never followed, unless it leads to no regular file (/dev/stdout): that is written to.
    Raises OutputError; without `force` also where something is there.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with open(path, "wb") as file:
                yield file
            return
        if not force and os.path.lexists(path):
            raise OutputError(f"{path} exists.", "Give another path, or --force to replace it.")
        with _beside(path) as file:
            yield file
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from None


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
