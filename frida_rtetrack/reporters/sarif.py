"""What was found as SARIF 2.1.0, which code hosts show beside the source (docs.oasis-open.org/sarif/sarif/v2.1.0).

One result a finding, with equal bad frees folded into one. Its place is the innermost frame of the program's own with a known
source line, relative to the source root where it lies below; its code flow is the life of the block, or the way to the allocation.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from frida_rtetrack.reporters.text import count, duration, size
from frida_rtetrack.reports.callsites import CallSite
from frida_rtetrack.reports.folded import Folded, folded
from frida_rtetrack.reports.growth import Growing
from frida_rtetrack.reports.profile import frame_name, printable
from frida_rtetrack.reports.summary import Summary
from frida_rtetrack.symbols.names import Stack, Thread
from frida_rtetrack.symbols.own import innermost_own, is_own
from frida_rtetrack.symbols.symbolizer import Frame
from frida_rtetrack.tracking.map import BadFreeKind

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
ROOT = "SRCROOT"
_RULES = {
    "duplicate": "A block of DPDK's heap was freed twice.",
    "interior": "An address inside a live block was freed.",
    "memzone": "Memory of a memzone or mempool was given to rte_free.",
    "foreign": "Memory that is not of DPDK's heap was given to rte_free.",
    "stray": "An address of DPDK's heap was freed at which no block begins.",
    "after_cleanup": "Memory of DPDK's heap was freed after rte_eal_cleanup.",
    "lost": "Nothing points to a block of DPDK's heap any more.",
    "growing": "A call site had ever more live blocks over the whole run.",
    "not-freed": "A block of DPDK's heap was not freed when rte_eal_cleanup was called.",
}
assert set(_RULES) >= {kind.value for kind in BadFreeKind}
_WARNINGS = ("growing", "not-freed")


def source_root(folder: Path) -> Path:
    """The root of the git work tree that `folder` is in, or `folder` itself."""
    folder = folder.resolve()
    return next((each for each in (folder, *folder.parents) if (each / ".git").exists()), folder)


def write(
    found: Summary,
    file: BinaryIO,
    *,
    root: Path,
    suppressed: Callable[[str, Stack | None], bool] = lambda kind, stack: False,
) -> None:
    """Writes one run. `root`: what files are relative to; `suppressed(kind, stack)`: whether a suppression names it."""
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [_Run(found, root.resolve(), suppressed).run()]}
    file.write((json.dumps(document, indent=1) + "\n").encode())


class _Run:
    def __init__(self, found: Summary, root: Path, suppressed: Callable[[str, Stack | None], bool]) -> None:
        self._found = found
        self._root = root
        self._suppressed = suppressed

    def run(self) -> dict[str, Any]:
        found = self._found
        program = printable(os.path.basename(found.argv[0])) if found.argv else f"process {found.pid}"
        return {
            "tool": {
                "driver": {
                    "name": "rtetrack-frida",
                    "version": found.version,
                    "rules": [_rule(name, text) for name, text in _RULES.items()],
                }
            },
            "automationDetails": {"id": f"rtetrack-frida/{program}/"},
            "originalUriBaseIds": {ROOT: {"uri": "file://" + _quoted(f"{self._root}/")}},
            "invocations": [self._invocation()],
            "results": list(self._results()),
        }

    def _invocation(self) -> dict[str, Any]:
        found = self._found
        told = {
            "commandLine": " ".join(map(printable, found.argv)),
            "arguments": [printable(word) for word in found.argv[1:]],
            "startTimeUtc": _utc(found.start.wall),
            "executionSuccessful": bool(found.hooks),
            "processId": found.pid,
            "exitCode": found.ending.exit_status,
            "exitSignalNumber": found.ending.signal,
            "toolExecutionNotifications": [
                {"level": "warning", "message": {"text": text}} for text in self._what_is_missing()
            ],
        }
        return {name: value for name, value in told.items() if value is not None}

    def _what_is_missing(self) -> Iterator[str]:
        found = self._found
        if not found.hooks:
            yield "Nothing was tracked."
        if found.lost:
            yield f"{count(found.lost, 'event')} lost: something may be missing."
        if found.damage:
            yield "The program's session memory was damaged: something may be missing."
        if found.bad_frees_not_kept:
            yield f"{count(found.bad_frees_not_kept, 'more bad free')} not kept."
        if found.leak_check is not None:
            yield from found.leak_check.not_told

    # ---- results

    def _results(self) -> Iterator[dict[str, Any]]:
        found = self._found
        for each in folded(found.bad_frees):
            yield self._bad_free(each)
        if found.leak_check is not None and found.leak_check.lost is not None:
            for site in found.leak_check.lost.lost.call_sites:
                yield self._leak("lost", f"{_amount(site)} lost: nothing points there any more.", site)
            for site in found.leak_check.lost.indirectly_lost.call_sites:
                yield self._leak("lost", f"{_amount(site)} lost: only lost blocks point there.", site)
        if found.leak_check is not None:
            for grown in found.leak_check.growing or ():
                text = f"Ever more live blocks: {size(grown.grown_bytes)} more since the start-up, {count(grown.blocks, 'block')} now."
                yield self._leak("growing", text, grown)
        if found.leaks is not None:
            for site in found.leaks.call_sites:
                yield self._leak("not-freed", f"{_amount(site)} not freed at rte_eal_cleanup.", site)

    def _bad_free(self, each: Folded) -> dict[str, Any]:
        report = each.first
        moments: list[tuple[str, Stack | None, Thread | None, int]] = []
        if report.allocated is not None and not report.allocated.baseline:
            block = report.allocated
            text = f"Allocated: {size(block.size_bytes)} of type {printable(block.type)}"
            moments.append((text, block.stack, block.thread, block.timestamp_ns))
        if report.first_freed is not None:
            first = report.first_freed
            moments.append((f"First freed, by {first.function}", first.stack, first.thread, first.timestamp_ns))
        moments.append((f"Freed by {report.function}", report.stack, report.thread, report.timestamp_ns))
        more = (
            f" {count(each.count - 1, 'more time')}, the last {duration(each.seconds)} later." if each.count > 1 else ""
        )
        return {
            **self._result(report.kind.value, "badfree", printable(report.detail) + more, report.stack),
            "occurrenceCount": each.count,
            "stacks": [self._stack(f"{text} by {_named(who)}", stack) for text, stack, who, _ in reversed(moments)],
            "codeFlows": [{"threadFlows": [{"locations": [self._step(*moment) for moment in moments]}]}],
            "properties": {"address": f"{report.address:#x}", "thread": _named(report.thread)},
        }

    def _leak(self, rule: str, text: str, site: CallSite | Growing) -> dict[str, Any]:
        frames = () if site.stack is None else site.stack.frames
        way = [
            {"location": self._location(each, frame_name(each)), "nestingLevel": i}
            for i, each in enumerate(frames[::-1])
        ]
        flow = {"codeFlows": [{"threadFlows": [{"locations": way}]}]} if way else {}
        return {
            **self._result(rule, "leak", text, site.stack),
            "stacks": [self._stack("Allocated", site.stack)],
            **flow,
            "properties": {"blocks": site.blocks, "bytes": site.size_bytes},
        }

    def _result(self, rule: str, kind: str, text: str, stack: Stack | None) -> dict[str, Any]:
        frames = () if stack is None else stack.frames
        place = _place(frames)
        return {
            "ruleId": rule,
            "ruleIndex": list(_RULES).index(rule),
            "level": _level(rule),
            "message": {"text": text},
            "locations": [] if place is None else [self._location(place)],
            "partialFingerprints": {"callPath/v1": _fingerprint(rule, frames)},
            **({"suppressions": [{"kind": "external"}]} if self._suppressed(kind, stack) else {}),
        }

    def _step(self, text: str, stack: Stack | None, thread: Thread | None, at_ns: int) -> dict[str, Any]:
        place = _place(() if stack is None else stack.frames)
        message = f"{text} by {_named(thread)}"
        started = self._found.start
        at = started.wall + timedelta(seconds=started.seconds_until(at_ns))
        location = {"message": {"text": message}} if place is None else self._location(place, message)
        return {"location": location, "stack": self._stack(message, stack), "executionTimeUtc": _utc(at)}

    def _stack(self, text: str, stack: Stack | None) -> dict[str, Any]:
        frames = () if stack is None else stack.frames
        return {"message": {"text": text}, "frames": [self._frame(frame) for frame in frames]}

    def _frame(self, frame: Frame) -> dict[str, Any]:
        module = {} if frame.module is None else {"module": printable(frame.module)}
        return {"location": self._location(frame), **module}

    def _location(self, frame: Frame, text: str | None = None) -> dict[str, Any]:
        place: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": frame_name(frame), "kind": "function"}]}
        if frame.file and frame.line:
            place["physicalLocation"] = {
                "artifactLocation": self._file(frame.file, own=is_own(frame)),
                "region": {"startLine": frame.line},
            }
        if text is not None:
            place["message"] = {"text": text}
        return place

    def _file(self, path: str, *, own: bool) -> dict[str, str]:
        """Relative to the source root where it lies below; what others call relative is so to a folder of theirs."""
        if not own and not os.path.isabs(path):
            return {"uri": _quoted(os.path.normpath(path))}
        whole = os.path.normpath(os.path.join(self._root, path))
        relative = os.path.relpath(whole, self._root)
        if relative.split(os.sep)[0] == os.pardir:
            return {"uri": f"file://{_quoted(whole)}"}
        return {"uri": _quoted(relative), "uriBaseId": ROOT}


def _rule(name: str, text: str) -> dict[str, Any]:
    return {"id": name, "shortDescription": {"text": text}, "defaultConfiguration": {"level": _level(name)}}


def _level(rule: str) -> str:
    return "warning" if rule in _WARNINGS else "error"


def _place(frames: Sequence[Frame]) -> Frame | None:
    """The innermost frame of the program's own, of those with a source line rather than of those without."""
    with_source = [frame for frame in frames if frame.file and frame.line]
    for candidates in (with_source, frames):
        own = innermost_own(candidates)
        if own is not None:
            return candidates[own]
    return frames[0] if frames else None


def _fingerprint(rule: str, frames: Sequence[Frame]) -> str:
    """The same in every run, and when lines move: by the names of the functions."""
    names = (frame.function or frame.module or "?" for frame in frames)
    return hashlib.sha256("\0".join((rule, *names)).encode(errors="surrogateescape")).hexdigest()[:32]


def _amount(site: CallSite) -> str:
    types = ", ".join(map(printable, site.types))
    return f"{size(site.size_bytes)} in {count(site.blocks, 'block')} of type {types}"


def _named(thread: Thread | None) -> str:
    return "an unknown thread" if thread is None else printable(str(thread))


def _quoted(path: str) -> str:
    return quote(path.encode(errors="surrogateescape"))


def _utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
