"""The file of a recording while it is written: SQLite, so that every commit survives whatever comes after it."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.recording import findings
from frida_rtetrack.recording.columns import COLUMNS, columns_of
from frida_rtetrack.recording.findings import Finding
from frida_rtetrack.recording.schema import APPLICATION_ID, FORMAT_VERSION, PAGE_BYTES, TABLES
from frida_rtetrack.reports.history import Site
from frida_rtetrack.stream.events import EventBatch, Times
from frida_rtetrack.stream.ring import StackRecord
from frida_rtetrack.symbols.names import Stack
from frida_rtetrack.symbols.symbolizer import Frame, Module
from frida_rtetrack.tracking.amendments import Amendment
from frida_rtetrack.tracking.badfree import BadFreeReport
from frida_rtetrack.tracking.map import MapState

_CACHE_KIB = 8192
_I64 = 1 << 63
LEAST_MAX_BYTES = 1 << 20
"""The smallest size that a recording may be limited to."""


def signed(number: int) -> int:
    """A 64-bit number as SQLite has it: two's complement."""
    return number - 2 * _I64 if number >= _I64 else number


def unsigned(number: int) -> int:
    """The 64-bit number that `signed` was given."""
    return number + 2 * _I64 if number < 0 else number


def as_json(value: Any) -> str:
    """As JSON, in ASCII: names that are no Unicode come back as they were."""
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=True, separators=(",", ":"))


def check(path: Path, *, force: bool) -> None:
    """Raises BadUsage, before anything is started, where `create` would."""
    folder = path.parent
    if path.is_dir():
        raise BadUsage(f"The recording cannot be written: {path} is a directory.", "Give the path of a file.")
    if os.path.lexists(path) and not (force and path.is_file()):
        raise BadUsage(
            f"There is a file {path} already.", "Give another path, or --force to overwrite the recording there."
        )
    if not folder.is_dir():
        raise BadUsage(
            f"The recording cannot be written: there is no directory {folder}.", "Make it, or give another path."
        )
    if not os.access(folder, os.W_OK):
        raise BadUsage(f"The recording cannot be written: no permission for {folder}.", "Give another path.")


def check_limit(max_bytes: int | None) -> None:
    """Raises BadUsage where no recording can keep to that."""
    if max_bytes is not None and max_bytes < LEAST_MAX_BYTES:
        raise BadUsage(
            f"A recording cannot keep to {max_bytes:,} bytes.", f"Give --max-size {LEAST_MAX_BYTES >> 20}M or more."
        )


def create(path: Path, *, force: bool) -> None:
    """Makes the empty file, for its owner only. Raises BadUsage where that cannot be, or another file is there.

    `force`: a regular file that is there is removed first; anything else stays.
    """
    try:
        if force and stat.S_ISREG(os.lstat(path).st_mode):
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BadUsage(f"The recording {path} cannot be replaced: {error.strerror}.", "Give another path.") from None
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise BadUsage(
            f"There is a file {path} already.", "Give another path, or --force to overwrite the recording there."
        ) from None
    except OSError as error:
        raise BadUsage(f"The recording cannot be written to {path}: {error.strerror}.", "Give another path.") from None


class RecordingFile:
    """Writes the tables. Of one thread. Every method but `close` raises OSError or sqlite3.Error where it cannot."""

    def __init__(self, path: Path) -> None:
        """Of the empty file at `path`."""
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        execute = self._database.execute
        execute(f"PRAGMA page_size = {PAGE_BYTES}")
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        execute("PRAGMA journal_mode = DELETE")
        execute("PRAGMA synchronous = FULL")
        execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        execute("BEGIN")
        for statement in TABLES.split(";\n"):
            execute(statement)
        self._frames: dict[Frame, int] = {}
        self.commit()

    def commit(self) -> None:
        """What was written until now is there to stay."""
        if self._database.in_transaction:
            self._database.execute("COMMIT")

    def rollback(self) -> None:
        """What was written since the last commit is not there."""
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")
        self._frames.clear()

    def size_bytes(self) -> int:
        """Of all that was written, committed or not."""
        (pages,) = self._database.execute("PRAGMA page_count").fetchone()
        return int(pages) * PAGE_BYTES

    def limit(self, size_bytes: int) -> None:
        """What would make it larger than that is an sqlite3.Error."""
        self._database.execute(f"PRAGMA max_page_count = {max(size_bytes // PAGE_BYTES, 1)}")

    def stacks(self) -> list[int]:
        """The numbers of the stacks that are in it."""
        return [int(number) for (number,) in self._database.execute("SELECT number FROM stacks")]

    def close(self) -> None:
        """Commits nothing."""
        self._database.close()

    def _insert(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        if not self._database.in_transaction:
            self._database.execute("BEGIN")
        for row in rows:
            self._database.execute(f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(row))})", row)

    def about(self, **values: Any) -> None:
        """What is known of the session as a whole, each as JSON."""
        self._insert("about", [(key, as_json(value)) for key, value in values.items()])

    def beginning(self, state: MapState, live: bytes) -> None:
        """The heap as it was when the recording began, later than the session; or the last that is known of it.

        `live`: its live blocks as aggregate.pack_rows has them.
        """
        told = msgspec.to_builtins(state.resizes), state.events, state.totals, state.peak, state.complete
        self._insert("beginning", [(1, msgspec.msgpack.encode(told), live)])

    def aggregate(self, usage: bytes, allocations: bytes, cleanup: bytes | None) -> None:
        """How the heap was used until now; in the place of what was known before."""
        self._insert("aggregate", [(1, usage, allocations, cleanup)])

    def sites(self, new: Iterable[tuple[int, Site]]) -> None:
        """What the numbers in the series stand for."""
        self._insert("sites", [(number, site.stack, site.type, site.thread) for number, site in new])

    def series(self, at_ns: int, changed: tuple[int, bytes, bytes, bytes] | None) -> None:
        """The next moment of the series; None: no site holds anything else than before."""
        self._insert("series", [(None, at_ns, *(changed or (0, None, None, None)))])

    def chunk(self, first: int, events: EventBatch, times: Times) -> None:
        """The events (n,), n > 0, the first of which is event number `first` of the recording."""
        start_ns = int(times[0])
        columns = columns_of(events, times, start_ns)
        self._insert(
            "chunks",
            [(None, first, len(events), start_ns, int(times[-1]), *(columns[name] for name in COLUMNS))],
        )

    def amendment(self, position: int, amendment: Amendment) -> None:
        """What came before event number `position` of the recording."""
        told = {
            "what": amendment.what,
            "addresses": amendment.addresses.astype("<u8").tobytes(),
            "numbers": amendment.numbers.astype("<u8").tobytes(),
            "since_sequence": amendment.since_sequence,
            "timestamp_ns": amendment.timestamp_ns,
        }
        self._insert("amendments", [(None, position, msgspec.msgpack.encode(told))])

    def label(self, number: int, text: bytes | None) -> None:
        """A type."""
        self._insert("labels", [(number, text)])

    def thread(self, number: int, process: int, tid: int, name: str) -> None:
        """A thread of the process that the recording calls so."""
        self._insert("threads", [(number, process, tid, _text(name))])

    def process(self, number: int, pid: int, argv: tuple[str, ...] | None) -> None:
        """A process; `argv` of a target, None of a forked child."""
        self._insert("processes", [(number, pid, argv is not None, None if argv is None else as_json(argv))])

    def process_if_new(self, number: int, pid: int) -> None:
        """A forked child, if it is not a process that is there already."""
        if not self._database.execute("SELECT 1 FROM processes WHERE number = ?", (number,)).fetchone():
            self.process(number, pid, None)

    def module(self, number: int, module: Module) -> None:
        """A module, as stacks refer to it by process and epoch."""
        self._insert(
            "modules",
            [
                (
                    number,
                    _text(module.path),
                    signed(module.base),
                    signed(module.size),
                    module.process,
                    module.loaded_epoch,
                    module.unloaded_epoch,
                    module.build_id,
                )
            ],
        )

    def stack(self, number: int, record: StackRecord) -> None:
        """A stack as it was recorded: addresses, innermost first, 8 bytes each."""
        addresses = np.array(record.addresses, "<u8").tobytes()
        self._insert("stacks", [(number, record.process, record.epoch, int(record.end), addresses)])

    def frames(self, number: int, stack: Stack) -> None:
        """A stack as it reads, innermost frame first."""
        self._insert("stack_frames", ((number, place, self._frame(frame)) for place, frame in enumerate(stack.frames)))

    def _frame(self, frame: Frame) -> int:
        known = self._frames.get(frame)
        if known is None:
            known = self._frames[frame] = len(self._frames) + 1
            row = (
                known,
                signed(frame.address),
                _text(frame.module),
                _signed(frame.offset),
                _text(frame.function),
                _signed(frame.function_offset),
                _text(frame.file),
                frame.line,
                frame.inlined,
                _text(frame.module_path),
                _text(frame.symbol),
            )
            self._insert("frames", [row])
        return known

    def bad_free(self, report: BadFreeReport) -> None:
        """A finding as it was judged."""
        self._insert("bad_frees", [(report.number, as_json(report))])

    def finding(self, finding: Finding) -> None:
        """Another one."""
        self._insert("findings", [(None, findings.kind_of(type(finding)), finding.at_ns, findings.pack(finding))])


def _signed(number: int | None) -> int | None:
    return None if number is None else signed(number)


def _text(text: str | None) -> str | bytes | None:
    """Paths and names as TEXT; those that are no Unicode as the bytes that they are."""
    try:
        if text is not None:
            text.encode()
        return text
    except UnicodeEncodeError:
        return os.fsencode(text or "")
