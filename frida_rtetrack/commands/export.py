"""`rtetrack-frida export`: what was live at a moment of a recording, for other tools."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import click

from frida_rtetrack.commands.moments import Source, When, filter_options, moment_options, recording_argument
from frida_rtetrack.commands.reports import say_what_is_missing
from frida_rtetrack.errors import BadUsage
from frida_rtetrack.reporters import streams, text
from frida_rtetrack.reporters.exports import blocks, folded, parquet, pprof, speedscope
from frida_rtetrack.reporters.outfile import OutputError, whole
from frida_rtetrack.reports.moment import Filters, Moment

WRITERS: dict[str, Callable[[Moment, BinaryIO], None]] = {
    "folded": folded.write,
    "folded-blocks": functools.partial(folded.write, by="blocks"),
    "speedscope": speedscope.write,
    "pprof": pprof.write,
    "csv": blocks.write,
}
"""Formats of one file. `parquet` is a directory."""


@click.command()
@recording_argument
@click.option("--format", "format_", type=click.Choice([*WRITERS, "parquet"]), required=True, help="What to write.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="Where: a file (default: standard output), for parquet the data set's directory.",
)
@click.option("--run", metavar="NAME", help="What the run is called in the data set (default: its start and pid).")
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@moment_options
@filter_options
def export(
    recording: Source, format_: str, output: Path | None, run: str | None, force: bool, when: When, filters: Filters
) -> None:
    """Write what was live at a moment of the recording FILE for other tools.

    folded: flamegraph.pl, inferno. speedscope: speedscope.app. pprof: go tool pprof. csv: a line a block. parquet: a
    directory, partitioned by host and run, for DuckDB, Polars, Spark.
    """
    if run is not None and format_ != "parquet":
        raise BadUsage("--run names a run in a data set.", "It goes with --format parquet.")
    if output is None and format_ == "parquet":
        raise BadUsage("A data set needs a directory.", "Give it with -o DIRECTORY.")
    with recording.open() as opened:
        _, moment = when.moment(opened)
        moment = moment.only(filters)
        if format_ == "parquet":
            assert output is not None
            output = parquet.write(moment, output, run=run, force=force)
        else:
            with _standard_output() if output is None else whole(output, force=force) as file:
                WRITERS[format_](moment, file)
        if output is not None:
            size = int(moment.rows["size_bytes"].sum())
            told = f"{text.size(size)} in {text.count(moment.rows.size, 'block')} written to {output}"
            streams.write(sys.stderr, f"rtetrack-frida: {told}\n")
        say_what_is_missing(opened)


@contextlib.contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    """Whoever reads it may stop (`| head`): the rest goes nowhere."""
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise OutputError(f"Standard output cannot be written: {error.strerror}.") from None
