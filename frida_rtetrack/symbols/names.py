"""Numbers of the event stream -> what a user reads: the text of a type, the frames of a stack, a thread's name.

Everything is looked up when somebody asks, and remembered: nothing here runs on the way of an event.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from frida_rtetrack.stream.events import MODULE_LOADED, StackEnd
from frida_rtetrack.stream.ring import ModuleRecord, StackRecord, ThreadRecord
from frida_rtetrack.symbols.sources import Sources
from frida_rtetrack.symbols.symbolizer import Frame, Module, ModuleMap, Symbolizer, format_frame

BASELINE_LABEL = 0xFFFF_FFFF
"""Stands for the type of a block that was there before the tracking began: no event has it."""

FRAMES_KEPT = 1 << 18
TEXT_KEPT = 1 << 25
"""Characters."""

_WHY_CUT = {
    StackEnd.MAX_FRAMES: "more frames were not recorded (--max-frames)",
    StackEnd.NO_UNWIND_TABLE: "the code has no unwind table here (JIT?): the callers are not known",
    StackEnd.UNSUPPORTED_RULE: "the unwind table uses a rule that is not supported: the callers are not known",
    StackEnd.OUT_OF_BOUNDS: "the next frame would lie outside of the thread's stack: the callers are not known",
}


@dataclass(frozen=True, slots=True)
class Stack:
    """A resolved stack: `frames` innermost first, inlined ones included; `cut` says why it is not whole, else None."""

    frames: tuple[Frame, ...]
    cut: str | None


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread of the target."""

    pid: int
    tid: int
    name: str

    def __str__(self) -> str:
        return f"thread {self.tid} ({self.name})" if self.name else f"thread {self.tid}"


class Tables(Protocol):
    """What the numbers refer to, as it was written: the session memory, or a recording. See SessionMemory for each."""

    def label(self, number: int) -> bytes | None:
        """A type."""

    def stack(self, number: int) -> StackRecord | None:
        """A stack."""

    def thread(self, number: int) -> ThreadRecord:
        """A thread."""

    def thread_of_stack(self, address: int, process: int) -> int | None:
        """The thread on whose stack an address lies."""

    def modules(self) -> list[ModuleRecord]:
        """All modules."""

    def modules_version(self) -> int:
        """A number that changes when there are more modules."""

    def pid(self, process: int) -> int:
        """The pid of a process, 0 where it is not known."""


class Names:
    """Looks names up for one session. Safe to use from any thread."""

    def __init__(
        self,
        memory: Tables,
        thread_name: Callable[[int, int], str | None],
        pid_of: Callable[[int], int] | None = None,
        sources: Sources | None = None,
    ) -> None:
        """Names of what `memory` holds. `thread_name(pid, tid)`: what a thread is called now, None where it is gone.

        `pid_of(process)`: the pid of the process that threads and stacks call so, 0 where it is not known; without it,
        the memory is believed. `sources`: where files are looked for besides their own paths.
        """
        self._sources = sources
        self._pid_of = pid_of or memory.pid
        self._memory = memory
        self._thread_name = thread_name
        self._modules = ModuleMap()
        self._symbolizers: dict[int, Symbolizer] = {}
        self._modules_read = -1
        self._epochs_read = -1
        self._stacks: dict[int, Stack] = {}
        self._dump_texts: dict[int, str] = {}
        self._frames_kept = 0
        self._dump_text_length = 0
        self._lock = threading.RLock()

    def label(self, number: int) -> bytes | None:
        """The type as the program gave it, None for NULL."""
        if number == BASELINE_LABEL:
            return b"<baseline>"
        with self._lock:
            return self._memory.label(number)

    def label_text(self, number: int, *, baseline: bool = False) -> str:
        """The type for a reader: `<unknown>` for NULL, `<baseline>` for what was live before tracking began."""
        text = self.label(BASELINE_LABEL if baseline and number == 0 else number)
        return "<unknown>" if text is None else text.decode(errors="backslashreplace")

    def thread(self, number: int) -> Thread:
        """The thread with the name that it has now, or had at its first event if it is gone."""
        with self._lock:
            record = self._memory.thread(number)
            pid = self._pid_of(record.process)
        return Thread(pid, record.tid, self._thread_name(pid, record.tid) or record.name)

    def thread_of_stack(self, address: int, process: int = 0) -> Thread | None:
        """The thread on whose stack `address` lies, as far as the native engine has seen it."""
        with self._lock:
            number = self._memory.thread_of_stack(address, process)
        return None if number is None else self.thread(number)

    def module_at(self, address: int, process: int = 0) -> str | None:
        """`module+0xoff` of an address in a module that is loaded now."""
        module = self._loaded(address, process)
        return None if module is None else f"{os.path.basename(module.path)}+{address - module.base:#x}"

    def variable_at(self, address: int, process: int = 0) -> str | None:
        """`module+0xoff (variable+8)` of an address in a module that is loaded now; without what is not known."""
        module = self._loaded(address, process)
        if module is None:
            return None
        with self._lock:
            variable = self._symbolizer(process).variable(module, address)
        return f"{os.path.basename(module.path)}+{address - module.base:#x}" + (f" ({variable})" if variable else "")

    def code_at(self, address: int, process: int = 0) -> str:
        """`function at file:line`, as far as it is known, of a return address in a module that is loaded now."""
        module = self._loaded(address - 1, process)
        if module is None:
            return f"{address:#x}"
        with self._lock:
            frame = self._symbolizer(process).frames_in(module, address)[-1]
        name = frame.function or f"{frame.module}+{address - module.base:#x}"
        return name + (f" at {frame.file}:{frame.line}" if frame.file and frame.line else "")

    def _loaded(self, address: int, process: int) -> Module | None:
        with self._lock:
            for each in self._memory.modules():
                if (
                    each.process == process
                    and each.unloaded_epoch == MODULE_LOADED
                    and each.base <= address < each.base + each.size
                ):
                    return _module(each)
        return None

    def stack(self, number: int) -> Stack | None:
        """The resolved stack, None for number 0 (backtraces were off, or the table was full)."""
        if number == 0:
            return None
        with self._lock:
            known = self._stacks.get(number)
            if known is None:
                record = self._memory.stack(number)
                if record is None:
                    return None
                self._refresh_modules(record)
                frames = self._symbolizer(record.process).resolve(record.process, record.epoch, record.addresses)
                known = Stack(tuple(frames), _WHY_CUT.get(record.end))
                self._remember(number, known)
            return known

    def why_cut(self, number: int) -> str | None:
        """Why a stack is not whole, None where it is."""
        with self._lock:
            record = self._memory.stack(number)
        return None if record is None else _WHY_CUT.get(record.end)

    def addresses(self, number: int) -> tuple[int, ...]:
        """The stack's return addresses, innermost first; empty for number 0."""
        with self._lock:
            record = self._memory.stack(number) if number else None
            return () if record is None else record.addresses

    def stack_text(self, number: int) -> str:
        """The stack as the dump file shows it: frames that are really there, separated by spaces; `<NA>` for 0."""
        stack = self.stack(number)
        if stack is None:
            return "<NA>"
        with self._lock:
            text = self._dump_texts.get(number)
            if text is None:
                text = " ".join(format_frame(frame) for frame in stack.frames if not frame.inlined)
                self._dump_text_length += len(text)
                if self._dump_text_length > TEXT_KEPT:
                    self._dump_texts.clear()
                    self._dump_text_length = len(text)
                self._dump_texts[number] = text
            return text

    def _remember(self, number: int, stack: Stack) -> None:
        """A program of many stacks, or one that makes them up, has the oldest looked up again instead of ever more kept."""
        self._frames_kept += len(stack.frames)
        if self._frames_kept > FRAMES_KEPT:
            self._stacks.clear()
            self._frames_kept = len(stack.frames)
        self._stacks[number] = stack

    def _symbolizer(self, process: int) -> Symbolizer:
        """For the files as that process sees them: it may be in a container."""
        if process not in self._symbolizers:
            self._symbolizers[process] = Symbolizer(self._modules, root=self._root(process), sources=self._sources)
        return self._symbolizers[process]

    def _root(self, process: int) -> str:
        return f"/proc/{self._pid_of(process)}/root"

    def _refresh_modules(self, record: StackRecord) -> None:
        used = self._memory.modules_version()
        if used == self._modules_read and record.epoch <= self._epochs_read:
            return
        self._modules_read = used
        self._epochs_read = max(self._epochs_read, record.epoch)
        self._modules.add_all(_module(each) for each in self._memory.modules())


def _module(record: ModuleRecord) -> Module:
    return Module(
        record.path,
        record.base,
        record.size,
        record.process,
        record.loaded_epoch,
        record.unloaded_epoch,
        record.build_id,
    )
