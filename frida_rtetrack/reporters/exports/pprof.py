"""pprof's profile: a gzipped protocol buffer, as `go tool pprof` and google/pprof read it (proto/profile.proto there).

Only the fields that are needed are written, by the few lines of the wire format at the end
(https://protobuf.dev/programming-guides/encoding): generated code would bring a dependency for every user.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from frida_rtetrack.reports.moment import Moment
from frida_rtetrack.reports.profile import NO_STACK, Sample, frame_name, printable, profile
from frida_rtetrack.symbols.symbolizer import Frame

PAGE_BYTES = 4096
_NO_FRAME = Frame(0, None, None, NO_STACK, None, None, None, False)
"""For a sample without a stack: pprof leaves out one without a location."""


def write(moment: Moment, file: BinaryIO) -> None:
    """Writes inuse_objects and inuse_space, with type, thread and socket as labels."""
    with gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        packed.write(_Document(profile(moment.rows, moment.names).samples, moment).encoded())


class _Document:
    """The message Profile, put together; its tables give each thing a number when it is first met."""

    def __init__(self, samples: Sequence[Sample], moment: Moment) -> None:
        self._moment = moment
        self._strings: dict[str, int] = {"": 0}
        self._functions: dict[tuple[str, str, str], int] = {}
        self._mappings: dict[tuple[str, int], list[int]] = {}
        self._locations: dict[tuple[Frame, ...], int] = {}
        self._samples = [self._sample(sample) for sample in samples]

    def encoded(self) -> bytes:
        """The message's bytes."""
        run = self._moment.run
        space = self._type("space", "bytes")
        parts = [
            _message(1, self._type("inuse_objects", "count")),
            _message(1, self._type("inuse_space", "bytes")),
            *(_message(2, sample) for sample in self._samples),
            *(_message(4, self._location(number, frames)) for frames, number in self._locations.items()),
            *(
                _message(3, self._mapping(number, path, base, limit))
                for (path, base), (number, limit) in sorted(self._mappings.items(), key=self._is_library)
            ),
            *(_message(5, self._function(number, *key)) for key, number in self._functions.items()),
            _number(9, round(run.start.wall.timestamp() * 1e9)),
            _number(10, max(round(self._moment.seconds * 1e9), 0)),
            _message(11, space),
            _number(12, 1),
            _number(13, self._string(" ".join(run.argv))),
            _number(14, self._string("inuse_space")),
        ]
        return b"".join(parts + [_message(6, text.encode()) for text in self._strings])

    def _is_library(self, mapping: tuple[tuple[str, int], list[int]]) -> bool:
        """The program itself is to be the first mapping."""
        argv = self._moment.run.argv
        return not argv or os.path.basename(mapping[0][0]) != os.path.basename(argv[0])

    def _string(self, text: str) -> int:
        return self._strings.setdefault(printable(text), len(self._strings))

    def _type(self, name: str, unit: str) -> bytes:
        return _number(1, self._string(name)) + _number(2, self._string(unit))

    def _sample(self, sample: Sample) -> bytes:
        labels = [("type", sample.type)]
        if sample.thread is not None:
            labels.append(("thread", sample.thread.name or str(sample.thread.tid)))
        return b"".join(
            [
                _packed(1, [self._number_of(frames) for frames in _physical(sample.frames or (_NO_FRAME,))]),
                _packed(2, (sample.blocks, sample.size_bytes)),
                *(_message(3, _number(1, self._string(a)) + _number(2, self._string(b))) for a, b in labels),
                _message(3, _number(1, self._string("socket")) + _number(3, sample.socket)),
            ]
        )

    def _number_of(self, frames: tuple[Frame, ...]) -> int:
        """The location of a call with what was inlined there, innermost first; it is met for the first time, or known."""
        number = self._locations.setdefault(frames, len(self._locations) + 1)
        holder = frames[-1]
        if holder.module_path is not None and holder.offset is not None:
            key = holder.module_path, holder.address - holder.offset
            mapping = self._mappings.setdefault(key, [len(self._mappings) + 1, 0])
            mapping[1] = max(mapping[1], holder.address)
        for frame in frames:
            self._function_of(frame)
        return number

    def _function_of(self, frame: Frame) -> int:
        key = frame_name(frame), frame.symbol or frame_name(frame), frame.file or ""
        return self._functions.setdefault(key, len(self._functions) + 1)

    def _location(self, number: int, frames: tuple[Frame, ...]) -> bytes:
        holder = frames[-1]
        mapping = 0
        if holder.module_path is not None and holder.offset is not None:
            mapping = self._mappings[holder.module_path, holder.address - holder.offset][0]
        lines = (_number(1, self._function_of(frame)) + _number(2, frame.line or 0) for frame in frames)
        call = max(holder.address - 1, 0)  # the address is the one that the call returns to
        return b"".join(
            [_number(1, number), _number(2, mapping), _number(3, call), *(_message(4, line) for line in lines)]
        )

    def _mapping(self, number: int, path: str, base: int, highest: int) -> bytes:
        """As far as it is used: a profile needs no more, and how large the module was is not known here."""
        limit = -(-(highest + 1) // PAGE_BYTES) * PAGE_BYTES
        found = [_number(1, number), _number(2, base), _number(3, limit), _number(5, self._string(path))]
        return b"".join(found + [_number(flag, 1) for flag in (7, 8, 9, 10)])  # names are here: pprof looks for none

    def _function(self, number: int, name: str, symbol: str, file: str) -> bytes:
        strings = enumerate((name, symbol, file), 2)
        return _number(1, number) + b"".join(_number(field, self._string(text)) for field, text in strings)


def _physical(frames: Sequence[Frame]) -> Iterable[tuple[Frame, ...]]:
    """Frames together with those that were inlined into them, innermost first."""
    inlined: list[Frame] = []
    for frame in frames:
        inlined.append(frame)
        if not frame.inlined:
            yield tuple(inlined)
            inlined = []
    if inlined:
        yield tuple(inlined)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; a negative int64 as its two's complement."""
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _packed(field: int, values: Iterable[int]) -> bytes:
    return _message(field, b"".join(map(_varint, values)))
