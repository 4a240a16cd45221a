"""Which moment of a recording a report is about, and which of its blocks: the options that reports share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.recording.reader import Recording
from frida_rtetrack.recording.replay import Replay
from frida_rtetrack.reports.moment import Filters, Moment
from frida_rtetrack.reports.temporary import Temporary
from frida_rtetrack.symbols.sources import Sources

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
    """A moment of a recording: the end, where nothing is said; or what was freed soon, until then."""

    at_seconds: float | None = None
    peak: bool = False
    at_cleanup: bool = False
    temporary: int | None = None
    """Not what is live, but the blocks that were freed before their thread had made so many further allocations."""

    def _check(self) -> None:
        """Raises BadUsage."""
        if (self.at_seconds is not None) + self.peak + self.at_cleanup > 1:
            raise BadUsage("--at, --peak and --at-cleanup name different moments.", "Give one of them.")
        if self.temporary is not None and (self.peak or self.at_cleanup):
            raise BadUsage("--temporary is about all of the run, or about what was until --at.", "Leave the other out.")

    def replay(self, recording: Recording, *, along: Along | None = None) -> Replay:
        """The session up to that moment, with `along` on the way. Raises BadUsage where it never came, NotRecorded."""
        self._check()
        replay, until_ns, until_sequence = Replay(recording), None, None
        last_ns = None
        if self.at_seconds is not None:
            last_ns = until_ns = replay.start.monotonic_ns + round(self.at_seconds * 1e9)
        elif self.peak or self.at_cleanup:
            until_sequence, last_ns = self._named(replay.run())
            if recording.is_aggregated and self.at_cleanup:
                return replay
            replay = Replay(recording)
        stops = () if along is None else along.stops(recording, last_ns)
        on_stop = (lambda: None) if along is None else functools.partial(along.take, replay)
        return replay.run(until_ns=until_ns, until_sequence=until_sequence, stops_ns=stops, on_stop=on_stop)

    def _named(self, whole: Replay) -> tuple[int, int | None]:
        """The number of the event of the moment that has a name, and its time if that is known already. Raises BadUsage."""
        if self.peak:
            peak = whole.heap.map.peak
            return peak.sequence, peak.timestamp_ns
        if whole.heap.eal.at_cleanup is None:
            raise BadUsage(
                "The program never called rte_eal_cleanup.", "Without --at-cleanup, what is live at the end is shown."
            )
        return whole.heap.eal.cleanup_sequence or 0, None

    def moment(self, recording: Recording, *, along: Along | None = None) -> tuple[Replay, Moment]:
        """That moment, and the session up to it. Raises BadUsage, NotRecorded."""
        if self.temporary is not None:
            replay = Replay(recording)
            rows = self._freed_soon(replay, self.temporary)
            return replay, replace(replay.moment(rows), temporary=self.temporary)
        replay = self.replay(recording, along=along)
        return replay, replay.moment(replay.heap.eal.at_cleanup if self.at_cleanup else None)

    def ns(self, recording: Recording) -> int:
        """Its time, monotonic ns; the events are looked at only where that takes it. Raises BadUsage, NotRecorded."""
        if self.peak or self.at_cleanup or recording.is_aggregated:
            return self.replay(recording).now_ns
        self._check()
        if self.at_seconds is not None:
            return recording.about.started.monotonic_ns + round(self.at_seconds * 1e9)
        return recording.about.until_ns or recording.span_ns()[1]

    def until_ns(self, recording: Recording, at_ns: int) -> int:
        """Up to when what was found on the way belongs to the moment `at_ns`: all of it, where nothing says when the end was."""
        return 1 << 63 if self == When() and recording.about.until_ns is None else at_ns

    def _freed_soon(self, replay: Replay, fewer_than: int) -> NDArray[np.void]:
        """Without judging what happened; how often each stack allocated is counted, though."""
        found, recording = Temporary(fewer_than), replay.recording
        replay.now_ns = self.ns(recording)
        for _, events, times in recording.events():
            until = int(np.searchsorted(times, replay.now_ns, side="right"))
            found.add(events[:until], times[:until])
            replay.often.add(events[:until])
        return found.rows()


class Along(Protocol):
    """What is looked at on the way to a moment."""

    def stops(self, recording: Recording, until_ns: int | None) -> Sequence[int]:
        """When, monotonic ns, ascending; before `until_ns`, where that is not the end."""

    def take(self, replay: Replay) -> None:
        """It is one of them."""


def moment_options(command: Command) -> Command:
    """`--at`, `--peak`, `--at-cleanup`, `--temporary`; the command takes `when: When`."""

    def with_when(*, temporary: int | None, **others: Any) -> None:
        when = others.pop("when")
        command(when=replace(when, temporary=temporary), **others)

    option = click.option(
        "--temporary",
        type=click.IntRange(1),
        metavar="N",
        help="Instead of what is live: what was freed before its thread had made N further allocations.",
    )
    return plain_moment_options(_named(option(with_when), command))


def plain_moment_options(command: Command) -> Command:
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


@dataclass(frozen=True, slots=True)
class Source:
    """A recording that was named, and where the files of its program are looked for."""

    path: Path
    symbol_path: tuple[Path, ...] = ()

    def open(self, path: Path | None = None) -> Recording:
        """The recording, or another one whose files are in the same places. Raises NoRecording, DamagedRecording."""
        return Recording(path or self.path, Sources(self.symbol_path, ask_debuginfod=True))


symbol_path_option = click.option(
    "--symbol-path",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    metavar="DIR",
    help="Where files of the program, or their debug files, are too: those whose build-id was recorded are used.",
)


def recording_argument(command: Command) -> Command:
    """The recording FILE and `--symbol-path`; the command takes `recording: Source`."""

    def with_recording(*, recording: Path, symbol_path: tuple[Path, ...], **others: Any) -> None:
        command(recording=Source(recording, symbol_path), **others)

    argument = click.argument("recording", type=click.Path(path_type=Path), metavar="FILE")
    return _named(argument(symbol_path_option(with_recording)), command)


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
