"""A recording that is read: what is in its tables, checked. What is damaged is said, and what stands before it is read.

A recording may come from somebody else: nothing in it is believed, and nothing in it is run.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import sqlite3
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np

from frida_rtetrack.errors import DamagedRecording, NoRecording, NotRecorded
from frida_rtetrack.progress import following
from frida_rtetrack.recording import aggregate, findings
from frida_rtetrack.recording.about import About
from frida_rtetrack.recording.blocks import unpack_rows
from frida_rtetrack.recording.columns import COLUMNS, events_of
from frida_rtetrack.recording.file import unsigned
from frida_rtetrack.recording.schema import APPLICATION_ID, FORMAT_VERSION
from frida_rtetrack.reports.history import Held, Site
from frida_rtetrack.stream.events import MAX_PROCESSES, MAX_THREADS, EventBatch, StackEnd, Times, possible
from frida_rtetrack.stream.ring import ModuleRecord, StackRecord, ThreadRecord
from frida_rtetrack.symbols.sources import Sources
from frida_rtetrack.symbols.symbolizer import Frame
from frida_rtetrack.tracking.amendments import Amendment
from frida_rtetrack.tracking.badfree import BadFreeReport
from frida_rtetrack.tracking.map import MapState, Peak, Totals
from frida_rtetrack.tracking.rules import Resize

Some = TypeVar("Some", bound=findings.Finding)

EVENTS_IN_A_CHUNK = 1 << 20
"""At most; more is no chunk of ours."""
UNPACKED_AHEAD = 2
"""Chunks."""
# https://www.sqlite.org/fileformat.html: page size at 16, change counter at 24, pages at 28 (if the counter at 92 is
# that one), user version at 60, application id at 68.
_HEADER = struct.Struct(">16xH6xII28xI4xI20xI4x")
_MAGIC = b"SQLite format 3\0"


class Recording:
    """The recording at `path`. Use it as a context manager; safe to use from any thread."""

    def __init__(self, path: Path, sources: Sources | None = None) -> None:
        """`sources`: where files of its program are looked for. Raises NoRecording, DamagedRecording."""
        self.path = path
        self.sources = sources or Sources()
        self.damage: str | None = _check_header(path)
        """What of it could not be read so far."""
        self._lock = threading.RLock()
        self._database = _open(path)
        try:
            told = {key: json.loads(value) for key, value in self._all("SELECT key, value FROM about")}
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise self._damaged(error) from None
        if "started" not in told:
            raise DamagedRecording(f"The recording {path} ended before it had begun.", "There is nothing in it.")
        try:
            self.about = msgspec.convert(told, About)
        except ValueError as error:  # msgspec's too
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> DamagedRecording:
        return DamagedRecording(
            f"The recording {self.path} is damaged: what it says about the session cannot be read ({error})."
        )

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    @property
    def is_aggregated(self) -> bool:
        """Whether it has a series and what was live at the end, and no events."""
        return self.about.aggregate_seconds is not None

    # ---- what happened

    def events(self) -> Iterator[tuple[int, EventBatch, Times]]:
        """As `chunks`. Raises NotRecorded where it has none."""
        if self.is_aggregated:
            raise NotRecorded(f"{self.path} has no events: it was recorded with --aggregate.")
        return self.chunks()

    def chunks(self) -> Iterator[tuple[int, EventBatch, Times]]:
        """(number of the first event, events (n,), times (n,)), in order, up to the first that is damaged."""
        until_ns = self.about.until_ns
        told = following("reading the recording", self._chunks(), self.about.events, lambda chunk: len(chunk[1]))
        for first, events, times in told:
            within = len(events) if until_ns is None else int(np.searchsorted(times, until_ns, side="right"))
            if within:
                yield first, events[:within], times[:within]
            if within < len(events):
                return

    def _chunks(self) -> Iterator[tuple[int, EventBatch, Times]]:
        """As `chunks`; while one is looked at the next ones are unpacked."""
        number, position, last_ns, rows = 0, 0, 0, self._chunk_rows()
        with ThreadPoolExecutor(1, "unpack") as unpacking:
            try:
                coming = deque(unpacking.submit(row) for row in itertools.islice(rows, UNPACKED_AHEAD))
                while coming:
                    number += 1
                    events, times = coming.popleft().result()
                    if times[0] < last_ns:
                        raise DamagedRecording(f"Chunk {number} does not follow the one before.")
                    coming.extend(unpacking.submit(row) for row in itertools.islice(rows, 1))
                    yield position, events, times
                    position, last_ns = position + len(events), int(times[-1])
            except (sqlite3.Error, TypeError, DamagedRecording) as error:
                self.damage = f"Events from number {position:,} on cannot be read: {error}"

    def _chunk_rows(self) -> Iterator[Callable[[], tuple[EventBatch, Times]]]:
        """For each chunk, what unpacks it or raises what is wrong with it: sqlite3.Error, TypeError, DamagedRecording."""
        position = 0
        query = f"SELECT first, events, start_ns, {', '.join(COLUMNS)} FROM chunks WHERE id = ?"
        for number in itertools.count(1):
            try:
                rows = self._all(query, number)
                if not rows and position >= self.about.events:
                    return
                if not rows:
                    raise DamagedRecording("the chunk with them is missing.")
                first, count, start_ns, *columns = rows[0]
                if first != position or not 0 < count <= EVENTS_IN_A_CHUNK:
                    raise DamagedRecording(f"Chunk {number} does not follow the one before.")
            except (sqlite3.Error, TypeError, DamagedRecording) as error:
                yield functools.partial(_fail, error)
                return
            yield functools.partial(_unpacked, number, dict(zip(COLUMNS, columns, strict=True)), count, start_ns)
            position += count

    def span_ns(self) -> tuple[int, int]:
        """The times of the first event and of the last, as far as is known without reading them; 0, 0 where there is none."""
        try:
            of = (
                "min(at_ns), max(at_ns) FROM series" if self.is_aggregated else "min(start_ns), max(end_ns) FROM chunks"
            )
            first, last = self._all(f"SELECT {of}")[0]
            last = min(int(last or 0), self.about.until_ns or 1 << 63)
            return int(first or 0), max(last, int(first or 0))
        except (sqlite3.Error, TypeError, ValueError):
            return 0, 0

    def beginning(self) -> MapState | None:
        """The heap as it was when the recording began; None where that was with the session. Raises DamagedRecording.

        Of an aggregated one: as it was when that was last written.
        """
        try:
            rows = self._all("SELECT state, live FROM beginning")
            if not rows:
                return None
            resizes, events, totals, peak, complete = msgspec.msgpack.decode(
                rows[0][0], type=tuple[dict[int, Resize], int, Totals, Peak, bool]
            )
            return MapState(unpack_rows(rows[0][1]), events, totals, peak, complete, resizes)
        except (sqlite3.Error, ValueError, TypeError, MemoryError, DamagedRecording) as error:
            raise self._damaged(error) from None

    def kept(self) -> aggregate.Kept | None:
        """What an aggregated recording has of the events besides; None where nothing was written yet."""
        try:
            rows = self._all("SELECT usage, allocations, cleanup FROM aggregate WHERE id = 1")
            return aggregate.kept(*rows[0]) if rows else None
        except (sqlite3.Error, DamagedRecording) as error:
            self.damage = f"How the heap was used cannot be read: {error}"
            return None

    def series(self) -> Iterator[tuple[int, list[tuple[Site, Held]]]]:
        """(monotonic ns, what the sites that changed hold more than before) of each moment of the series, in order."""
        try:
            sites = {
                int(number): Site(int(stack), int(kind), int(thread))
                for number, stack, kind, thread in self._all("SELECT number, stack, type, thread FROM sites")
            }
            last_ns = 0
            for at_ns, changed, *columns in self._all(
                "SELECT at_ns, changed, site, blocks, bytes FROM series ORDER BY id"
            ):
                if at_ns < last_ns or not 0 <= changed <= len(sites):
                    raise DamagedRecording("its moments do not follow each other.")
                row = aggregate.series_row(changed, *columns) if changed else []
                yield at_ns, [(sites[number], more) for number, more in row]
                last_ns = at_ns
        except (sqlite3.Error, KeyError, TypeError, ValueError, DamagedRecording) as error:
            self.damage = f"The series cannot be read: {error}"

    def amendments(self) -> list[tuple[int, Amendment]]:
        """(position, amendment): what came before event number `position`, in order."""
        found = []
        try:
            for position, raw in self._all("SELECT position, amendment FROM amendments ORDER BY id"):
                told = msgspec.msgpack.decode(raw)
                addresses, numbers = (
                    np.frombuffer(told[name], "<u8").astype(np.uint64) for name in ("addresses", "numbers")
                )
                if (
                    told["what"] not in ("complete", "incomplete", "baseline", "forget")
                    or addresses.size != numbers.size
                ):
                    raise ValueError("it is none")
                since, at_ns = int(told["since_sequence"]), int(told["timestamp_ns"])
                found.append((int(position), Amendment(told["what"], addresses, numbers, since, at_ns)))
        except (sqlite3.Error, msgspec.DecodeError, ValueError, TypeError, KeyError) as error:
            self.damage = f"An amendment of the live set cannot be read: {error}"
        return found

    def bad_frees(self) -> list[BadFreeReport]:
        """The bad frees as they were judged, in order."""
        found = []
        try:
            for (told,) in self._all("SELECT report FROM bad_frees ORDER BY number"):
                found.append(msgspec.convert(json.loads(told), BadFreeReport))
        except (sqlite3.Error, ValueError, TypeError) as error:  # msgspec's are ValueErrors
            self.damage = f"A bad free cannot be read: {error}"
        return found

    def findings(self, kind: type[Some]) -> list[Some]:
        """The findings of that kind, in order."""
        query = "SELECT finding FROM findings WHERE kind = ? ORDER BY id"
        try:
            return [findings.unpack(told, kind) for (told,) in self._all(query, findings.kind_of(kind))]
        except (sqlite3.Error, TypeError, DamagedRecording) as error:
            self.damage = f"What was found on the way cannot be read: {error}"
            return []

    def processes(self) -> list[tuple[int, int, tuple[str, ...] | None]]:
        """(number, pid, argument list of a target or None for a forked child) of each process."""
        try:
            rows = self._all("SELECT number, pid, argv FROM processes ORDER BY number")
            return [(int(n), int(pid), None if argv is None else tuple(json.loads(argv))) for n, pid, argv in rows]
        except (sqlite3.Error, ValueError, TypeError) as error:
            self.damage = f"The processes cannot be read: {error}"
            return []

    # ---- what the numbers in events refer to: symbols.names.Tables

    def label(self, number: int) -> bytes | None:
        """A type."""
        row = self._one("SELECT text FROM labels WHERE number = ?", number)
        return row[0] if row and isinstance(row[0], bytes) else None

    def stack(self, number: int) -> StackRecord | None:
        """A stack as it was recorded."""
        row = self._one("SELECT process, epoch, ending, addresses FROM stacks WHERE number = ?", number)
        try:
            if row is None:
                return None
            addresses = tuple(np.frombuffer(row[3], "<u8").tolist())
            return StackRecord(addresses, StackEnd(row[2]), int(row[0]), int(row[1]))
        except (ValueError, TypeError):
            return None

    def thread(self, number: int) -> ThreadRecord:
        """A thread; without id and name where it is not known."""
        row = self._one("SELECT tid, name, process FROM threads WHERE number = ?", number)
        try:
            return (
                ThreadRecord(int(row[0]), _text(row[1]) or "", int(row[2]))
                if row
                else ThreadRecord(0, "", MAX_PROCESSES)
            )
        except (ValueError, TypeError):
            return ThreadRecord(0, "", MAX_PROCESSES)

    def thread_of_stack(self, address: int, process: int) -> int | None:
        """Not known any more."""
        return None

    def modules_version(self) -> int:
        """Nothing is added any more."""
        return 1

    def modules(self) -> list[ModuleRecord]:
        """All modules."""
        query = "SELECT path, base, size, process, loaded_epoch, unloaded_epoch, build_id FROM modules ORDER BY id"
        try:
            return [
                ModuleRecord(_text(path) or "", unsigned(base), unsigned(size), process, loaded, unloaded, build_id)
                for path, base, size, process, loaded, unloaded, build_id in self._all(query)
            ]
        except (sqlite3.Error, TypeError) as error:
            self.damage = f"The modules cannot be read: {error}"
            return []

    def pid(self, process: int) -> int:
        """The pid that a process had."""
        row = self._one("SELECT pid FROM processes WHERE number = ?", process)
        return int(row[0]) if row and isinstance(row[0], int) else 0

    def process_of_threads(self) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
        """The process of each thread, by the thread's number."""
        processes = np.full(MAX_THREADS, MAX_PROCESSES, np.uint16)
        try:
            for number, process in self._all("SELECT number, process FROM threads"):
                if 0 <= number < MAX_THREADS and 0 <= process < MAX_PROCESSES:
                    processes[number] = process
        except (sqlite3.Error, TypeError) as error:
            self.damage = f"The threads cannot be read: {error}"
        return processes

    def frames(self, number: int) -> tuple[Frame, ...]:
        """How a stack reads, innermost frame first, as it was looked up at the end; () where it was not."""
        query = (
            "SELECT address, module, offset, function, function_offset, file, line, inlined, module_path, symbol "
            "FROM stack_frames JOIN frames ON frames.id = frame WHERE stack = ? ORDER BY place"
        )
        try:
            return tuple(
                Frame(
                    unsigned(address), _text(module), _unsigned(offset), _text(function), _unsigned(function_offset),
                    _text(file), line, bool(inlined), _text(path), _text(symbol),
                )
                for address, module, offset, function, function_offset, file, line, inlined, path, symbol
                in self._all(query, number)
            )  # fmt: skip
        except (sqlite3.Error, TypeError) as error:
            self.damage = f"How a stack reads is damaged: {error}"
            return ()

    def has_frames(self) -> bool:
        """Whether stacks were looked up when it ended."""
        try:
            return bool(self._all("SELECT 1 FROM stack_frames LIMIT 1"))
        except sqlite3.Error:
            return False

    def _one(self, query: str, number: int) -> tuple[Any, ...] | None:
        try:
            rows = self._all(query, number)
        except sqlite3.Error as error:
            self.damage = f"A name cannot be read: {error}"
            return None
        return rows[0] if rows else None

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._database.execute(query, values).fetchall()


def _unpacked(number: int, columns: dict[str, bytes], count: int, start_ns: int) -> tuple[EventBatch, Times]:
    """Chunk `number`. Raises DamagedRecording; TypeError where its columns are of other types."""
    events, times = events_of(columns, count, start_ns)
    if times[0] < start_ns or (np.diff(times) < 0).any():
        raise DamagedRecording(f"The times of chunk {number} do not follow each other.")
    if possible(events, MAX_THREADS) is not None:
        raise DamagedRecording(f"Chunk {number} has events that cannot be.")
    return events, times


def _fail(error: Exception) -> NoReturn:
    raise error


def _check_header(path: Path) -> str | None:
    """Raises NoRecording where it is none of ours; returns what is wrong where only the file's end is missing."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            head = file.read(_HEADER.size)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise NoRecording(
            f"The recording {path} cannot be read: {error.strerror}.", "Give the path of a recording."
        ) from None
    if not head:
        raise NoRecording(f"{path} is empty: the recording ended before it had begun.")
    if not head.startswith(_MAGIC) or len(head) < _HEADER.size:
        raise NoRecording(f"{path} is no recording.")
    page_bytes, changes, pages, version, application, pages_of_change = _HEADER.unpack(head)
    if application != APPLICATION_ID:
        raise NoRecording(f"{path} is an SQLite database, and no recording.")
    if version > FORMAT_VERSION:
        raise NoRecording(
            f"{path} was recorded by a newer rtetrack-frida (format {version}; this one reads {FORMAT_VERSION}).",
            "Read it with that version.",
        )
    if changes == pages_of_change and size < pages * page_bytes:
        return f"The file is cut short: it has {size:,} of {pages * page_bytes:,} bytes."
    return None


def _open(path: Path) -> sqlite3.Connection:
    """Also where a transaction was cut short and may not be rolled back here, or the end of the file is missing."""
    name = f"file:{quote(os.path.abspath(path))}?mode=ro"
    for uri in (name, f"{name}&immutable=1"):
        database = sqlite3.connect(uri, uri=True, check_same_thread=False)
        try:
            database.execute("PRAGMA trusted_schema = OFF")
            database.execute("PRAGMA writable_schema = ON")  # else a file that is too short is not opened at all
            strange = database.execute("SELECT name FROM sqlite_schema WHERE type NOT IN ('table', 'index')").fetchone()
            if strange:
                raise NoRecording(f"{path} has a view or a trigger in it: it is no recording.")
            return database
        except sqlite3.Error as error:
            database.close()
            problem = error
    raise DamagedRecording(f"The recording {path} is damaged: {problem}.", "There is nothing in it that can be read.")


def _text(value: str | bytes | None) -> str | None:
    if value is not None and not isinstance(value, str | bytes):
        raise TypeError("a name is text")
    return os.fsdecode(value) if isinstance(value, bytes) else value


def _unsigned(number: int | None) -> int | None:
    return None if number is None else unsigned(number)
