"""An option whose value may be left out: `--leak-check` or `--leak-check=lost`."""

from __future__ import annotations

from typing import Any

import click


class OptionalValue(click.Option):
    """An option that takes its value behind `=` only: what follows it without one is the next argument, never its value.

    click's own optional values take the next word where that is no option: `--leak-check ./app` would have no program.
    """

    def __init__(self, *names: Any, bare: str, **others: Any) -> None:
        """`bare`: the value where none is given."""
        super().__init__(*names, **others)
        self._bare = bare

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """See click.Option."""
        super().add_to_parser(parser, ctx)
        match = parser._match_long_opt

        def with_value(name: str, value: str | None, state: Any) -> None:
            match(name, self._bare if value is None and name in self.opts else value, state)

        parser._match_long_opt = with_value

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """See click.Option; with the value as it is to be written."""
        record = super().get_help_record(ctx)
        return record and (f"{self.opts[0]}[={self.metavar}]", record[1])
