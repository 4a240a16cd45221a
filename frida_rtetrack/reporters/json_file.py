"""The summary as one JSON object in a file (`--summary FILE`)."""

from __future__ import annotations

import json
import os
from pathlib import Path

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.reports.summary import Summary


def check_writable(path: Path) -> None:
    """Raises BadUsage, before anything is started, where the summary could not be written at the end."""
    folder = path.parent
    if not folder.is_dir():
        raise BadUsage(
            f"The summary cannot be written: there is no directory {folder}.", "Make it, or give another path."
        )
    if path.is_dir():
        raise BadUsage(f"The summary cannot be written: {path} is a directory.", "Give the path of a file.")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise BadUsage(f"The summary cannot be written: no permission for {path}.", "Give another path.")


def write(path: Path, found: Summary) -> None:
    """Writes the summary. Raises OSError."""
    path.write_text(json.dumps(found.as_json(), indent=1) + "\n")
