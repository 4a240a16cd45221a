"""The whole stack of a stopped thread, by call-frame tables: every frame or none.

What a function's table says at an address is kept, so that the second look at a stack takes some ten microseconds a
frame. `NotKnownYet` says that a table has to be read first: the thread need not stand still for that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from frida_rtetrack.target.arrival import cfi
from frida_rtetrack.target.arrival.modules import AddressMap, Memory, Module
from frida_rtetrack.target.arrival.ptrace import Registers

MAX_FRAMES = 512
_WORD = (1 << 64) - 1
_DWARF_REGISTERS = ("rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{i}" for i in range(8, 16)), "rip")


class NotKnownYet(Exception):
    """A table that was not looked at before is needed."""


class StackTooDeep(Exception):
    """The copy of the stack ends before the stack does."""


class NoEnd(Exception):
    """The stack cannot be followed to its end."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One call: where it stands (a return address in all but the innermost), in what module and function."""

    address: int
    module: Module
    function: int
    stack_pointer: int = 0
    """Its part of the stack is from here to the caller's."""


@dataclass(frozen=True, slots=True)
class StackCopy:
    """The bytes of a stack from the stack pointer up."""

    address: int
    data: bytes

    def word(self, address: int) -> int:
        """The word at `address`. Raises StackTooDeep, NoEnd."""
        at = address - self.address
        if at < 0:
            raise NoEnd(f"a saved register below the stack ({address:#x})")
        if at + 8 > len(self.data):
            raise StackTooDeep
        return int.from_bytes(self.data[at : at + 8], "little")


class Unwinder:
    """Walks stacks of one process; keeps what it has learnt of its code."""

    def __init__(self, memory: Memory, addresses: AddressMap) -> None:
        self._memory = memory
        self.addresses = addresses
        self._rows: dict[int, tuple[Module, cfi.Row]] = {}

    def walk(
        self, registers: Registers, stack: StackCopy, *, learn: bool, into: list[Frame] | None = None
    ) -> list[Frame]:
        """The frames, innermost first. Raises NotKnownYet (unless `learn`), StackTooDeep, NoEnd.

        `into` gets them as they are found, and keeps them whatever is raised.
        """
        known = {number: registers[name] for number, name in enumerate(_DWARF_REGISTERS)}
        frames: list[Frame] = [] if into is None else into
        while len(frames) < MAX_FRAMES:
            address = known[cfi.RIP]
            module, row = self._row(address if not frames else address - 1, learn)
            frames.append(Frame(address, module, row.function, known[cfi.RSP]))
            if row.is_signal_frame:
                raise NoEnd("in a signal handler")
            if row.rules.get(cfi.RIP, cfi.Rule("offset")).kind == "undefined":
                return frames
            above = _caller(row, known, stack)
            if above[cfi.RSP] <= known[cfi.RSP]:
                raise NoEnd("the stack goes the wrong way")
            known = above
        raise NoEnd("too many frames")

    def _row(self, address: int, learn: bool) -> tuple[Module, cfi.Row]:
        found = self._rows.get(address)
        if found is not None:
            return found
        if not learn:
            raise NotKnownYet
        module = self.addresses.find(address)
        if module is None:
            raise NoEnd(f"{address:#x} is in no module")
        try:
            row = cfi.row_at(self._memory, module, address)
        except cfi.NoTable as error:
            raise NoEnd(f"{module.path}+{address - module.bias:#x}: {error}") from None
        self._rows[address] = (module, row)
        return self._rows[address]


def _caller(row: cfi.Row, known: dict[int, int], stack: StackCopy) -> dict[int, int]:
    """The registers of the calling frame."""

    def value(number: int) -> int:
        if number not in known:
            raise NoEnd(f"register {number} is not known")
        return known[number]

    if row.cfa.kind == "register":
        cfa = value(row.cfa.number) + row.cfa_offset & _WORD
    else:
        cfa = _evaluate(row.cfa.expression, value, stack, None)
    above = dict(known)
    for number, rule in row.rules.items():
        if rule.kind == "offset":
            above[number] = stack.word(cfa + rule.number & _WORD)
        elif rule.kind == "value":
            above[number] = cfa + rule.number & _WORD
        elif rule.kind == "register":
            above[number] = value(rule.number)
        elif rule.kind == "expression":
            above[number] = stack.word(_evaluate(rule.expression, value, stack, cfa))
        elif rule.kind == "value expression":
            above[number] = _evaluate(rule.expression, value, stack, cfa)
        elif rule.kind == "undefined":
            above.pop(number, None)
    above[cfi.RSP] = cfa
    return above


def _evaluate(code: bytes, value: Callable[[int], int], stack: StackCopy, start: int | None) -> int:
    """A DWARF expression of the few kinds that compilers and linkers put into call-frame tables."""
    cursor = cfi._Bytes(code, 0)
    values: list[int] = [] if start is None else [start]
    try:
        while cursor.at < len(code):
            operation = cursor.take("B")
            if 0x30 <= operation <= 0x4F:  # lit
                values.append(operation - 0x30)
            elif 0x70 <= operation <= 0x8F:  # breg
                values.append(value(operation - 0x70) + cursor.sleb())
            elif operation in (0x08, 0x09, 0x0A, 0x0B, 0x0C, 0x0D):  # const
                values.append(cursor.take("BbHhIi"[operation - 0x08]))
            elif operation == 0x06:  # deref
                values.append(stack.word(values.pop() & _WORD))
            elif operation == 0x12:  # dup
                values.append(values[-1])
            elif operation == 0x23:  # plus_uconst
                values.append(values.pop() + cursor.uleb())
            elif operation in _BINARY:
                right, left = values.pop(), values.pop()
                values.append(_BINARY[operation](left, right))
            else:
                raise NoEnd(f"DWARF operation {operation:#x}")
        return values[-1] & _WORD
    except IndexError:
        raise NoEnd("a damaged DWARF expression") from None


_BINARY: dict[int, Callable[[int, int], int]] = {
    0x1A: lambda left, right: left & right,
    0x1C: lambda left, right: left - right,
    0x22: lambda left, right: left + right,
    0x24: lambda left, right: left << (right & 63),
    0x2A: lambda left, right: int(left >= right),
}
