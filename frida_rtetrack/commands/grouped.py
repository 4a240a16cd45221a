"""Help that a reader finds something in: options below headings, and text behind them that stays as it is written."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_HEADING = "rtetrack_heading"


def under(heading: str, *options: Decorator) -> tuple[Decorator, ...]:
    """The options (as `click.option` makes them), listed below `heading` in the help of a `GroupedCommand`."""

    def with_heading(option: Decorator) -> Decorator:
        def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
            decorated = option(command)
            place(decorated.__click_params__[-1], heading)  # type: ignore[attr-defined]
            return decorated

        return decorate

    return tuple(map(with_heading, options))


def place(option: click.Parameter, heading: str) -> click.Parameter:
    """The option, listed below `heading`."""
    setattr(option, _HEADING, heading)
    return option


def verbatim(**sections: str) -> str:
    """An epilog: each section's name as a title (`_` is a space), its lines indented below, none of them wrapped."""
    return "\n\n".join(
        f"\b\n{title.replace('_', ' ')}:\n{textwrap.indent(lines.strip(chr(10)), '  ')}"
        for title, lines in sections.items()
    )


class GroupedCommand(click.Command):
    """A command whose options are listed below the headings that `under` gave them, the others at the end."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click.Command."""
        groups: dict[str, list[tuple[str, str]]] = {}
        others: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                heading = getattr(parameter, _HEADING, None)
                (others if heading is None else groups.setdefault(heading, [])).append(record)
        for heading, records in [*groups.items(), ("Others", others)]:
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
