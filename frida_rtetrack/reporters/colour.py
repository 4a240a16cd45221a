"""Lines as a terminal shows them, by rich: coloured where the stream is a terminal that can, and nobody said otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from frida_rtetrack.reporters.tone import Tone, tone_of
from frida_rtetrack.symbols.visible import visible

WHEN = ("auto", "always", "never")
_STYLES = {
    Tone.WRONG: Style(color="red", bold=True),
    Tone.RIGHT: Style(color="green"),
    Tone.HEADING: Style(bold=True),
    Tone.OWN: Style(color="yellow", bold=True),
    Tone.ASIDE: Style(dim=True),
    Tone.SOURCE: Style(color="cyan"),
}


class Colours:
    """Whether to colour. `when` is for the whole command: what `--color` said."""

    when = "auto"


def wanted(stream: TextIO) -> bool:
    """Whether what goes to `stream` is coloured: never where it is piped, unless with `--color always`."""
    if Colours.when != "auto":
        return Colours.when == "always"
    console = Console(file=stream)
    return console.is_terminal and console.color_system is not None and not console.no_color


def painted(lines: Iterable[str], stream: TextIO) -> str:
    """The lines as `stream` is to get them, each with its end; what a name has to command a terminal is visible."""
    colour = wanted(stream)
    return "".join(_painted(line, colour) + "\n" for line in lines)


def _painted(line: str, colour: bool) -> str:
    style = _STYLES.get(tone_of(line)) if colour else None
    shown = visible(str(line))
    if style is None:
        return shown
    body = shown.lstrip(" ")  # what is indented is not underlined, nor highlighted
    return shown[: len(shown) - len(body)] + style.render(body, color_system=ColorSystem.STANDARD)
