"""`--color`, an option of every command."""

from __future__ import annotations

import click

from frida_rtetrack.reporters.colour import WHEN, Colours


def color_option() -> click.Option:
    """The option, for one command; what was said last holds."""
    return click.Option(
        ["--color"],
        type=click.Choice(WHEN),
        expose_value=False,
        callback=_take,
        help="Colour where the terminal has it (auto, the default; NO_COLOR is heard), always or never.",
    )


def _take(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        Colours.when = value
