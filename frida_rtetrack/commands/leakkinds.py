"""What `--leak-check=KINDS` says."""

from __future__ import annotations

import click

from frida_rtetrack.options import LeakKind


def leak_kinds(text: str) -> frozenset[LeakKind]:
    """One kind of leak, or several with commas between. Raises click.BadParameter."""
    try:
        return frozenset(LeakKind(kind.strip()) for kind in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no kind of leak: give lost, growing or all, or several with commas between."
        ) from None
