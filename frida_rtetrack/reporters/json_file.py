"""The summary as one JSON object in a file (`--summary FILE`)."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.reports.summary import Summary

PROBE_BYTES = 1 << 16


def check_writable(path: Path, what: str = "summary") -> None:
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
            _write_beside(path, " " * PROBE_BYTES).unlink()
        except OSError as error:
            raise BadUsage(f"The {what} cannot be written to {path}: {error.strerror}.", "Give another path.") from None


def write(path: Path, found: Summary) -> None:
    """Writes the summary: a new file, mode 0600, takes the place of what was there once it is whole. Raises OSError.

    A link at `path` is replaced, never followed, unless it leads to no regular file (/dev/stdout): that is written to.
    """
    document = json.dumps(found.as_json(), indent=1) + "\n"
    if path.exists() and not path.is_file():
        path.write_text(document)
        return
    temporary = _write_beside(path, document)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_beside(path: Path, document: str) -> Path:
    """A new file beside `path` with this in it, for its owner only; nothing is left where that fails. Raises OSError."""
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600), "w") as file:
            file.write(document)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
