"""A file of a user's that is written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from frida_rtetrack.errors import BadUsage, RtetrackError
from frida_rtetrack.newfile import new_file_beside

PROBE_BYTES = 1 << 16


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
        with new_file_beside(path) as (file, temporary):
            yield file
            file.close()
            os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from None


def write_json(path: Path, document: dict[str, Any]) -> None:
    """One JSON object, in ASCII: what would command a terminal stays escaped. Raises OutputError."""
    with whole(path) as file:
        file.write((json.dumps(document, indent=1) + "\n").encode())


def check_writable(path: Path, what: str) -> None:
    """Raises BadUsage, before anything is started, where `what` could not be written at the end."""
    folder = path.parent
    if not folder.is_dir():
        raise BadUsage(
            f"The {what} cannot be written: there is no directory {folder}.", "Make it, or give another path."
        )
    if path.is_dir():
        raise BadUsage(f"The {what} cannot be written: {path} is a directory.", "Give the path of a file.")
    if not os.access(path if path.exists() and not path.is_file() else folder, os.W_OK, effective_ids=True):
        raise BadUsage(f"The {what} cannot be written: no permission for {path}.", "Give another path.")
    if not path.exists() or path.is_file():
        try:
            with new_file_beside(path) as (file, temporary):
                file.write(bytes(PROBE_BYTES))
                file.close()
                os.unlink(temporary)
        except OSError as error:
            raise BadUsage(f"The {what} cannot be written to {path}: {error.strerror}.", "Give another path.") from None
