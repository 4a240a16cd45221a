"""What a dump file says was live, by who allocated it: to compare dumps with each other and with recordings."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from frida_rtetrack.errors import BadUsage
from frida_rtetrack.reports.dump import read_dump, split_frames
from frida_rtetrack.reports.profile import Profile, Sample
from frida_rtetrack.symbols.symbolizer import Frame

_FRAME = re.compile(
    r"(?P<path>.*?)\((?P<function>.*?)(?:\+0x(?P<offset>[0-9a-f]+))?\) \[0x(?P<address>[0-9a-f]+)\]\Z", re.DOTALL
)
_NAMELESS = re.compile(r"\[0x([0-9a-f]+)\]\Z")


def profile(path: Path) -> Profile:
    """The blocks of the dump at `path`. Raises BadUsage."""
    try:
        rows = read_dump(path)
    except (ValueError, OSError) as error:
        raise BadUsage(f"{path} cannot be read as a dump: {error}") from None
    blocks, sizes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for row in rows:
        blocks[row.backtrace, row.type] += 1
        sizes[row.backtrace, row.type] += row.size
    frames = {backtrace: tuple(map(_frame, split_frames(backtrace))) for backtrace, _ in blocks}
    return Profile(
        tuple(
            Sample(0, frames[backtrace], kind, None, -1, blocks[backtrace, kind], size_bytes)
            for (backtrace, kind), size_bytes in sizes.most_common()
        )
    )


def _frame(text: str) -> Frame:
    """As symbolizer.format_frame wrote it."""
    found = _FRAME.match(text)
    if found is None:
        nameless = _NAMELESS.match(text)
        return Frame(int(nameless[1], 16) if nameless else 0, None, None, None, None, None, None, False)
    path, function = found["path"], found["function"] or None
    offset = None if found["offset"] is None else int(found["offset"], 16)
    return Frame(
        address=int(found["address"], 16),
        module=os.path.basename(path),
        offset=None if function else offset,
        function=function,
        function_offset=offset if function else None,
        file=None,
        line=None,
        inlined=False,
        module_path=path,
        symbol=function,
    )
