"""Where the dump goes if the user named no place: the original tool's path, unless somebody else's file is there.

Several users of a machine share that path, which lies in a directory where each may replace only what is theirs.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from frida_rtetrack.options import DEFAULT_DUMP_PATH


def dump_place(path: Path, default: Path = DEFAULT_DUMP_PATH) -> Path:
    """`path`, or a name beside it with the user's id where it is the default one and something not the user's is there.

    Somebody who has taken that name as well cannot keep this user from writing a dump either: the last name is random.
    """
    if path != default or _is_free(path):
        return path
    beside = path.with_name(f"{path.stem}.{os.geteuid()}{path.suffix}")
    if _is_free(beside):
        return beside
    return path.with_name(f"{path.stem}.{os.geteuid()}.{secrets.token_hex(4)}{path.suffix}")


def _is_free(path: Path) -> bool:
    """Whether nothing is there, or a file or link of this user's, which a dump takes the place of."""
    try:
        there = os.lstat(path)
    except OSError:  # nothing is there; or that nothing can be written there is said when it is
        return True
    return there.st_uid == os.geteuid() and (stat.S_ISREG(there.st_mode) or stat.S_ISLNK(there.st_mode))
