"""A new file that takes the place of another one when it is whole."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def new_file_beside(name: str | os.PathLike[str], *, folder_fd: int | None = None) -> Iterator[tuple[BinaryIO, str]]:
    """A new file beside `name`, in `folder_fd` where that is given, for its owner only; and what it is called.

    It is gone again if anything is raised; else it is the caller's to rename or to remove. Raises OSError.
    """
    folder, base = os.path.split(os.fspath(name))
    temporary = os.path.join(folder, f".{base[:200]}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, 0o600, dir_fd=folder_fd), "wb") as file:
            yield file, temporary
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=folder_fd)
        raise
