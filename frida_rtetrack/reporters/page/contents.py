"""What the page shows, as the one JSON object that its script reads: every name once, numbers everywhere else."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from frida_rtetrack.reporters import text
from frida_rtetrack.reports.growth import Growing
from frida_rtetrack.reports.history import NO_THREAD, NOTHING, Held, History, Site
from frida_rtetrack.reports.lost import LostReport
from frida_rtetrack.reports.moment import Moment, Run
from frida_rtetrack.reports.profile import NO_STACK, frame_name, printable
from frida_rtetrack.reports.summary import CallSite, Leaks
from frida_rtetrack.symbols.names import Names, Stack, Thread
from frida_rtetrack.symbols.symbolizer import Frame
from frida_rtetrack.tracking.badfree import BadFreeReport

SITES_AT_MOST = 4000
"""What a browser still draws at once; the smallest beyond them are one."""
LEAKS_AT_MOST = 500
BAD_FREES_AT_MOST = 200
CALLERS_NOT_KNOWN = "(callers not known)"


@dataclass(frozen=True, slots=True)
class Leak:
    """Blocks that nobody will free, or so it seems. `kind`: a word for the reader, as "lost"."""

    kind: str
    site: CallSite
    curve: tuple[int, ...] = ()
    """Its live bytes at moments of the run, evenly."""


@dataclass(frozen=True, slots=True)
class Base:
    """What is compared with, of this run or of another one; `names` has what its own numbers stand for."""

    held: dict[Site, Held]
    names: Names
    title: str


@dataclass(frozen=True, slots=True)
class Page:
    """What is to be shown. `names` has what the numbers in `history` and `base` stand for."""

    run: Run
    seconds: float
    """How long the run, or the recording, was."""
    history: History
    names: Names
    base: Base | None = None
    """The page shows first what grew and shrank since."""
    chosen: int = -1
    """Index of the moment that is shown first."""
    marks: Sequence[tuple[float, str]] = ()
    """(seconds, text) on the time line."""
    leaks: Sequence[Leak] = ()
    bad_frees: Sequence[BadFreeReport] = ()
    bad_frees_not_kept: int = 0
    notes: Sequence[str] = field(default=())
    """Sentences that a reader must know, as that events were lost."""


def page_of(moment: Moment, *, leaks: Sequence[Leak] = (), bad_frees: Sequence[BadFreeReport] = ()) -> Page:
    """The page of one moment, of a running program or of a recording."""
    history = History()
    history.add(moment.seconds, moment.rows)
    return Page(moment.run, moment.seconds, history, moment.names, leaks=leaks, bad_frees=bad_frees)


def leaks_at_cleanup(found: Leaks | None) -> list[Leak]:
    """What was live at rte_eal_cleanup."""
    return [] if found is None else [Leak("live at rte_eal_cleanup", site) for site in found.call_sites]


def leaks_growing(found: Sequence[Growing]) -> list[Leak]:
    """What only increases."""
    return [Leak("growing", CallSite(each.blocks, each.size_bytes, 0, each.stack, ()), each.curve) for each in found]


def leaks_of(found: LostReport) -> list[Leak]:
    """What nothing points to."""
    lost = [Leak("lost", site) for site in found.lost.call_sites]
    return lost + [Leak("indirectly lost", site) for site in found.indirectly_lost.call_sites]


def contents(page: Page) -> dict[str, Any]:
    """The JSON object."""
    tables = _Tables()
    run = page.run
    sites = _sites(page, tables)
    leaks = [_leak(leak, tables) for leak in page.leaks[:LEAKS_AT_MOST]]
    bad_frees = _bad_frees(page, tables)
    return {
        "title": printable(run.argv[0].rpartition("/")[2]) if run.argv else f"process {run.pid}",
        "command": printable(" ".join(run.argv)),
        "host": printable(run.host),
        "pid": run.pid,
        "started": run.start.wall.isoformat(timespec="seconds"),
        "seconds": page.seconds,
        "engine": run.engine,
        "version": run.version,
        "moments": [round(seconds, 6) for seconds in page.history.seconds],
        "chosen": page.chosen % max(len(page.history.seconds), 1),
        "marks": [[seconds, printable(what)] for seconds, what in page.marks],
        "notes": [printable(note) for note in page.notes],
        "base_title": "" if page.base is None else printable(page.base.title),
        "sites": sites,
        "leaks": leaks,
        "leaks_not_shown": max(len(page.leaks) - LEAKS_AT_MOST, 0),
        "bad_frees": bad_frees,
        "bad_frees_not_shown": page.bad_frees_not_kept + max(len(page.bad_frees) - sum(each["count"] for each in bad_frees), 0),
        **tables.as_json(),
    }  # fmt: skip


class _Table:
    """Gives each thing a number when it is first met."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def number(self, thing: Hashable) -> int:
        return self._numbers.setdefault(thing, len(self._numbers))

    def as_json(self) -> list[Any]:
        return list(self._numbers)


class _Tables:
    """The names of the page."""

    def __init__(self) -> None:
        self._modules, self._files, self._functions = _Table(), _Table(), _Table()
        self._frames, self._stacks, self._types, self._threads = _Table(), _Table(), _Table(), _Table()

    def as_json(self) -> dict[str, Any]:
        return {
            "modules": self._modules.as_json(),
            "files": self._files.as_json(),
            "functions": self._functions.as_json(),
            "frames": self._frames.as_json(),
            "stacks": self._stacks.as_json(),
            "types": self._types.as_json(),
            "threads": self._threads.as_json(),
        }

    def stack(self, stack: Stack | None) -> int:
        """Its number. A stack is a list of frames, outermost first."""
        frames = [] if stack is None else [self._frame(frame) for frame in reversed(stack.frames)]
        if stack is not None and stack.cut:
            frames.insert(0, self._nameless(CALLERS_NOT_KNOWN))
        return self._stacks.number(tuple(frames or [self._nameless(NO_STACK)]))

    def stack_of_one(self, name: str) -> int:
        return self._stacks.number((self._nameless(name),))

    def site(self, site: Site, names: Names) -> tuple[int, int, int]:
        """The numbers of its stack, type and thread; -1 for a thread that is not known."""
        thread = -1 if site.thread == NO_THREAD else self._threads.number(_thread(names.thread(site.thread)))
        return self.stack(names.stack(site.stack)), self.type(names.label_text(site.type)), thread

    def type(self, name: str) -> int:
        return self._types.number(printable(name))

    def _frame(self, frame: Frame) -> int:
        """A frame is [function, file or -1, line or 0]; a function is [name, module or -1]."""
        module = -1 if frame.module is None else self._modules.number(printable(frame.module))
        function = self._functions.number((frame_name(frame), module))
        file = -1 if not frame.file else self._files.number(printable(frame.file))
        return self._frames.number((function, file, frame.line or 0))

    def _nameless(self, text: str) -> int:
        return self._frames.number((self._functions.number((text, -1)), -1, 0))


def _thread(thread: Thread) -> str:
    return printable(f"{thread.name} ({thread.tid})" if thread.name else str(thread.tid))


Changes = list[tuple[int, Held]]


@dataclass(slots=True)
class _Row:
    """A site as the page has it; together with others that read the same, where two runs are compared."""

    site: Site
    names: Names
    parts: list[Changes]
    base: Held = NOTHING

    def most_bytes(self) -> int:
        return max(
            [sum(max((held.size_bytes for _, held in part), default=0) for part in self.parts), self.base.size_bytes]
        )


def _rows(page: Page) -> list[_Row]:
    """The sites, the largest first. Those of the base are the same where their functions, type and thread's name are."""
    rows = [_Row(site, page.names, [changes]) for site, changes in page.history.changes.items()]
    if page.base is not None:
        alike: dict[Hashable, _Row] = {}
        for row in rows:
            first = alike.setdefault(_reading(row.site, row.names), row)
            if first is not row:
                first.parts += row.parts
        for site, held in page.base.held.items():
            row = alike.setdefault(_reading(site, page.base.names), _Row(site, page.base.names, []))
            row.base += held
        rows = list(alike.values())
    return sorted(rows, key=lambda row: (-row.most_bytes(), row.site))


def _reading(site: Site, names: Names) -> Hashable:
    stack = names.stack(site.stack)
    functions = () if stack is None else tuple(frame_name(frame) for frame in stack.frames)
    thread = "" if site.thread == NO_THREAD else names.thread(site.thread).name
    return functions, names.label_text(site.type), thread


def _sites(page: Page, tables: _Tables) -> dict[str, Any]:
    """Columns, an entry a site. `changes`: [moments since the last change, more blocks, more bytes, ...]."""
    rows = _rows(page)
    shown = [(tables.site(row.site, row.names), row.parts, row.base) for row in rows[:SITES_AT_MOST]]
    folded: dict[str, list[_Row]] = {}
    for row in rows[SITES_AT_MOST:]:
        folded.setdefault(row.names.label_text(row.site.type), []).append(row)
    others = f"({max(len(rows) - SITES_AT_MOST, 0):,} smaller call sites)"
    for name, same in folded.items():
        parts = [part for row in same for part in row.parts]
        shown.append(
            ((tables.stack_of_one(others), tables.type(name), -1), parts, sum((row.base for row in same), NOTHING))
        )
    found: dict[str, Any] = {
        "stack": [stack for (stack, _, _), _, _ in shown],
        "type": [number for (_, number, _), _, _ in shown],
        "thread": [thread for (_, _, thread), _, _ in shown],
        "changes": [_deltas(parts[0] if len(parts) == 1 else _together(parts)) for _, parts, _ in shown],
    }
    if page.base is not None:
        found["base"] = [[base.blocks, base.size_bytes] for _, _, base in shown]
    return found


def _together(several: Sequence[Changes]) -> Changes:
    """What several sites held in all."""
    steps: dict[int, Held] = {}
    for changes in several:
        before = NOTHING
        for index, held in changes:
            step = Held(held.blocks - before.blocks, held.size_bytes - before.size_bytes)
            steps[index] = steps.get(index, NOTHING) + step
            before = held
    total, found = NOTHING, []
    for index in sorted(steps):
        total = total + steps[index]
        found.append((index, total))
    return found


def _deltas(changes: Changes) -> list[int]:
    found, last, before = [], 0, NOTHING
    for index, held in changes:
        found += [index - last, held.blocks - before.blocks, held.size_bytes - before.size_bytes]
        last, before = index, held
    return found


def _leak(leak: Leak, tables: _Tables) -> dict[str, Any]:
    return {
        "kind": leak.kind,
        "blocks": leak.site.blocks,
        "bytes": leak.site.size_bytes,
        "types": [printable(name) for name in leak.site.types],
        "stack": tables.stack(leak.site.stack),
        "curve": list(leak.curve),
    }


def _bad_frees(page: Page, tables: _Tables) -> list[dict[str, Any]]:
    """Those of one kind and with the same three stacks are one, with a count."""
    found: dict[Hashable, dict[str, Any]] = {}
    for report in page.bad_frees:
        if report.site in found:
            found[report.site]["count"] += 1
        elif len(found) < BAD_FREES_AT_MOST:
            found[report.site] = _bad_free(report, page, tables)
    return list(found.values())


def _bad_free(report: BadFreeReport, page: Page, tables: _Tables) -> dict[str, Any]:
    stacks = [
        {"title": f"This free, {report.function} by {_thread(report.thread)}", "stack": tables.stack(report.stack)}
    ]
    first, block = report.first_freed, report.allocated
    if first is not None:
        title = f"First freed {text.duration(first.seconds_before)} before, {first.function} by {_thread(first.thread)}"
        stacks.append({"title": title, "stack": tables.stack(first.stack)})
    if block is not None and block.baseline:
        title = f"The block of {text.size(block.size_bytes)} was there before the tracking began"
        stacks.append({"title": title, "stack": -1})
    elif block is not None:
        by = "" if block.thread is None else f", by {_thread(block.thread)}"
        title = f"Allocated {text.duration(block.seconds_before)} before, {text.size(block.size_bytes)} of type {printable(block.type)}{by}"
        stacks.append({"title": title, "stack": tables.stack(block.stack)})
    return {
        "title": printable(text.bad_free_title(report)),
        "kind": report.kind.value,
        "count": 1,
        "seconds": page.run.start.seconds_until(report.timestamp_ns),
        "detail": printable(report.detail),
        "also": "" if report.also is None else printable(f"It may also be: {report.also.kind.value}. {report.also.detail}"),
        "stacks": stacks,
    }  # fmt: skip
