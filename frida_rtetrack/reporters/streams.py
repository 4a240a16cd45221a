"""Standard output and error of ours, which somebody may have closed, or stopped to read: the run goes on without."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def write(stream: TextIO, data: str) -> None:
    """Writes all of it at once. Where that fails for good, what is written from now on goes nowhere."""
    try:
        stream.write(data)
        stream.flush()
    except BlockingIOError:  # the program made the terminal that we share non-blocking: it stays in the buffer
        pass
    except (OSError, ValueError):
        _lead_nowhere(stream)


def to_new_line(stream: TextIO) -> str:
    """What brings a terminal to the beginning of a line: nothing shows where it is there, else the next line begins.

    Another program may have left it anywhere. As many blanks as a line has, less one, lead into the next line from
    everywhere but the first column (zsh's PROMPT_SP). Empty where `stream` is no terminal, or a prompt looks after it.
    """
    try:
        if stream is not sys.__stderr__ or not stream.isatty():
            return ""
        return " " * (os.get_terminal_size(stream.fileno()).columns - 1) + "\r"
    except (OSError, ValueError):
        return ""


def open_closed_streams() -> None:
    """Has descriptors 0 to 2 lead nowhere where they are closed: else what is opened next gets one, and is written to."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
    if sys.stdin is None:
        sys.stdin = open(os.devnull)
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


def _lead_nowhere(stream: TextIO) -> None:
    """Its descriptor, not only the object: the interpreter flushes it at exit, and exits with 120 where that fails."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # closed altogether
        pass
