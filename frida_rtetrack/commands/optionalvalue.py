"""An option that may have a value, `--leak-check` or `--leak-check=lost`: never the next word, which is the program."""

from __future__ import annotations

from typing import Any

import click


class OptionalValue(click.Option):
    """Takes a value only with `=`; without one it is `flag_value`."""

    def __init__(self, *names: Any, without: str, **attributes: Any) -> None:
        """`without`: what it is where it has no value."""
        super().__init__(*names, **attributes)
        self.without = without

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Has the parser find the value of an option that has none, before it looks at the next word."""
        super().add_to_parser(parser, ctx)
        match = parser._match_long_opt

        def with_value(option: str, value: str | None, state: Any) -> None:
            match(option, self.without if value is None and option in self.opts else value, state)

        parser._match_long_opt = with_value
