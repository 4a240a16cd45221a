"""What a line of text is to its reader: lines that say so themselves, for whoever can show it."""

from __future__ import annotations

from enum import Enum


class Tone(Enum):
    """How a line is meant."""

    PLAIN = "plain"
    WRONG = "wrong"
    """The first line of something that is wrong."""
    RIGHT = "right"
    """Says that something is in order."""
    HEADING = "heading"
    OWN = "own"
    """The frame that catches the eye: the program's innermost own."""
    ASIDE = "aside"
    """Frames of DPDK, of the C library and the like."""
    SOURCE = "source"
    """A line of the program's source."""


class Line(str):
    """A line of text with its tone. Cutting or joining it gives plain text."""

    tone: Tone

    def __new__(cls, text: str, tone: Tone) -> Line:
        """`text`, meant so."""
        line = super().__new__(cls, text)
        line.tone = tone
        return line


def tone_of(line: str) -> Tone:
    """How a line is meant; PLAIN where it does not say."""
    return line.tone if isinstance(line, Line) else Tone.PLAIN
