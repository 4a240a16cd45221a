"""Which moment of a recording a report is about, and which of its blocks: the options that reports share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.replay import Replay
from frida_rtetrack.reports.moment import Filters, Moment

Command = TypeVar("Command", bound=Callable[..., None])


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(text: str) -> int:
    """Bytes from 4096, 64K, 10M, 1.5GiB; a K is 1,024. Raises click.BadParameter."""
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        found = float(number.removesuffix(unit)) * _UNITS[unit]
        if 0 <= found < 1 << 63:
            return int(found)
    except ValueError:
        pass
    raise click.BadParameter(f"{text!r} is no size: give bytes, or as in 64K, 10M, 1.5G.")


@dataclass(frozen=True, slots=True)
class When:
    """A moment of a recording: the end, where nothing is said."""

    at_seconds: float | None = None
    peak: bool = False
    at_cleanup: bool = False

    def replay(self, recording: Recording) -> Replay:
        """The session up to that moment. Raises BadUsage where it never came."""
        if (self.at_seconds is not None) + self.peak + self.at_cleanup > 1:
            raise BadUsage("--at, --peak and --at-cleanup name different moments.", "Give one of them.")
        replay = Replay(recording)
        if self.at_seconds is not None:
            return replay.run(until_ns=replay.start.monotonic_ns + round(self.at_seconds * 1e9))
        replay.run()
        if self.peak:
            sequence = replay.heap.map.peak.sequence
            return Replay(recording).run(until_sequence=sequence)
        if self.at_cleanup and replay.heap.eal.at_cleanup is None:
            raise BadUsage(
                "The program never called rte_eal_cleanup.", "Without --at-cleanup, what is live at the end is shown."
            )
        return replay

    def moment(self, recording: Recording) -> tuple[Replay, Moment]:
        """That moment, and the session up to it, or beyond it where it is --at-cleanup. Raises BadUsage."""
        replay = self.replay(recording)
        return replay, replay.moment(replay.heap.eal.at_cleanup if self.at_cleanup else None)


def moment_options(command: Command) -> Command:
    """`--at`, `--peak`, `--at-cleanup`; the command takes `when: When`."""

    def with_when(*, at: float | None, peak: bool, at_cleanup: bool, **others: Any) -> None:
        command(when=When(at, peak, at_cleanup), **others)

    for option in (
        click.option("--at-cleanup", is_flag=True, help="What was live when the program called rte_eal_cleanup."),
        click.option("--peak", is_flag=True, help="The moment of most live bytes."),
        click.option(
            "--at",
            type=click.FloatRange(0),
            metavar="SECONDS",
            help="The moment so long after the start (default: the end).",
        ),
    ):
        with_when = option(with_when)
    return _named(with_when, command)


def filter_options(command: Command) -> Command:
    """`--type`, `--socket`, `--thread`, `--module`, `--min-size`, `--older`; the command takes `filters: Filters`."""

    def with_filters(
        *,
        type: str | None,
        socket: int | None,
        thread: str | None,
        module: str | None,
        min_size: int,
        older: float | None,
        **others: Any,
    ) -> None:
        command(filters=Filters(type, socket, thread, module, min_size, older), **others)

    for option in (
        click.option("--older", type=click.FloatRange(0), metavar="SECONDS", help="Only blocks at least so old then."),
        click.option(
            "--min-size", type=size, default="0", metavar="SIZE", help="Only blocks at least so large: 4096, 64K, 10M."
        ),
        click.option(
            "--module", metavar="GLOB", help="Only blocks whose stack passes through such a module: libapp*.so."
        ),
        click.option(
            "--thread", metavar="TID|GLOB", help="Only blocks that this thread, or one of such a name, allocated."
        ),
        click.option(
            "--socket",
            type=click.IntRange(-1),
            metavar="N",
            help="Only blocks asked for on this NUMA socket; -1: on any.",
        ),
        click.option("--type", metavar="GLOB", help="Only blocks of such a type: 'rx*'."),
    ):
        with_filters = option(with_filters)
    return _named(with_filters, command)


recording_argument = click.argument("recording", type=click.Path(path_type=Path), metavar="FILE")
"""The recording, as a path."""

source_root_option = click.option(
    "--source-root",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="What files in the SARIF are relative to (default: the git work tree here, or this directory).",
)
"""The command takes `source_root: Path | None`."""


def _named(wrapper: Any, command: Command) -> Command:
    """`wrapper`, which has options of its own, in the place of `command`, which may have some."""
    own = getattr(wrapper, "__click_params__", [])
    functools.update_wrapper(wrapper, command)
    wrapper.__click_params__ = getattr(command, "__click_params__", []) + own
    named: Command = wrapper
    return named
