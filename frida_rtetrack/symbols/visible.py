"""Names as they may be shown: what a program put into one to command a terminal does nothing."""

from __future__ import annotations

import re

_COMMANDS = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 (ESC is one), DEL and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of writing
    "\udc80-\udc9f]"  # bytes that are no UTF-8 and would be C1 where the terminal takes single bytes (PEP 383)
)
_ENDS_OF_LINES = re.compile("([\r\n])")


def visible(line: str) -> str:
    """`line` as it may go to a terminal, or into a file that is looked at on one: ESC is shown as `\\x1b`."""
    return _COMMANDS.sub(_escaped, line)


def visible_text(text: str) -> str:
    """The same where a text may have several lines, as a field of CSV: the ends of lines stay."""
    return "".join(part if part in "\r\n" else visible(part) for part in _ENDS_OF_LINES.split(text))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code >= 0xDC80:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
