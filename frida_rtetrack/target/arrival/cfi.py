"""Call-frame tables of another process: for a code address, where the caller's registers are.

Looks a function up in its module's `.eh_frame_hdr` (binary search) and runs its CFA program for one address. Formats:
DWARF 5, 6.4, and the LSB's "Exception Frames". What is not understood raises NoTable; nothing is guessed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from frida_rtetrack.target.arrival.modules import Memory, Module

RBX, RBP, RSP, RIP = 3, 6, 7, 16
_SEARCH_ENTRY = 8
_MAX_ENTRY_BYTES = 1 << 16
_TABLE_SIGNED_4_DATAREL = 0x3B


class NoTable(Exception):
    """There is no call-frame information for this address, or none that can be made sense of."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How one register of the caller is found: `kind` is offset (saved at CFA + number), value (CFA + number),
    register (in register `number`), same, undefined, or an expression for where it is saved or what it is."""

    kind: str
    number: int = 0
    expression: bytes = b""


@dataclass(frozen=True, slots=True)
class Row:
    """What holds at one address: the CFA (register + offset, or an expression) and the rules of the registers."""

    function: int
    """Where the function begins."""
    cfa: Rule
    """`kind` register (`number`, plus `cfa_offset`) or expression."""
    cfa_offset: int
    rules: dict[int, Rule]
    is_signal_frame: bool


@dataclass
class _Frame:
    code_align: int = 1
    data_align: int = 1
    return_register: int = RIP
    encoding: int = 0
    signal: bool = False
    augmented: bool = False
    initial: bytes = b""


class _Bytes:
    """A cursor over bytes that lie at `address` in the other process."""

    def __init__(self, data: bytes, address: int) -> None:
        self.data = data
        self.address = address
        self.at = 0

    def take(self, layout: str) -> int:
        (value,) = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return int(value)

    def uleb(self) -> int:
        result = shift = 0
        while True:
            byte = self.take("B")
            result |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return result

    def sleb(self) -> int:
        result = shift = 0
        while True:
            byte = self.take("B")
            result |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return result - (1 << shift) if byte & 0x40 else result

    def block(self) -> bytes:
        size = self.uleb()
        self.at += size
        return self.data[self.at - size : self.at]

    def pointer(self, encoding: int) -> int:
        here = self.address + self.at
        layouts = {0x0: "Q", 0x2: "H", 0x3: "I", 0x4: "Q", 0xA: "h", 0xB: "i", 0xC: "q"}
        if encoding & 0x0F == 0x1:
            value = self.uleb()
        elif encoding & 0x0F in layouts:
            value = self.take(layouts[encoding & 0x0F])
        else:
            raise NoTable(f"pointer encoding {encoding:#x}")
        if encoding & 0x70 == 0x10:
            value += here
        elif encoding & 0x70:
            raise NoTable(f"pointer encoding {encoding:#x}")
        return value & (1 << 64) - 1


def row_at(memory: Memory, module: Module, address: int) -> Row:
    """What holds at `address` in `module`. Raises NoTable."""
    try:
        entry = _find_entry(memory, module, address)
        return _read_row(memory, entry, address)
    except (struct.error, OSError, IndexError) as error:
        raise NoTable(f"damaged call-frame table ({error})") from None


def _find_entry(memory: Memory, module: Module, address: int) -> int:
    header = module.eh_frame_header
    if header is None:
        raise NoTable(f"{module.path} has no .eh_frame_hdr")
    raw = memory.read(header, 12)
    version, frame_encoding, count_encoding, table_encoding = raw[:4]
    if (
        version != 1
        or count_encoding != 0x03
        or table_encoding != _TABLE_SIGNED_4_DATAREL
        or frame_encoding & 0xF != 0xB
    ):
        raise NoTable(f"{module.path}: unknown .eh_frame_hdr")
    (count,) = struct.unpack_from("<I", raw, 8)
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        (start,) = struct.unpack("<i", memory.read(header + 12 + _SEARCH_ENTRY * middle, 4))
        if header + start <= address:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        raise NoTable("before the first function")
    _, entry = struct.unpack("<ii", memory.read(header + 12 + _SEARCH_ENTRY * (low - 1), _SEARCH_ENTRY))
    return int(header + entry)


def _entry_bytes(memory: Memory, address: int) -> _Bytes:
    (size,) = struct.unpack("<I", memory.read(address, 4))
    if not 0 < size < _MAX_ENTRY_BYTES:
        raise NoTable("a table entry of odd size")
    return _Bytes(memory.read(address + 4, size), address + 4)


def _read_row(memory: Memory, entry: int, address: int) -> Row:
    description = _entry_bytes(memory, entry)
    frame = _read_common(memory, description.address - description.take("I"))
    start = description.pointer(frame.encoding)
    size = _Bytes(description.data[description.at :], 0).pointer(frame.encoding & 0x0F)
    description.at += {0x2: 2, 0xA: 2, 0x3: 4, 0xB: 4}.get(frame.encoding & 0x0F, 8)
    if not start <= address < start + size:
        raise NoTable("in no function")
    if frame.augmented:
        description.block()
    program = _Program(frame, start)
    program.run(_Bytes(frame.initial, 0), address)
    program.initial_rules = dict(program.rules)
    program.run(_Bytes(description.data[description.at :], 0), address)
    if program.cfa is None:
        raise NoTable("no CFA")
    return Row(start, program.cfa, program.cfa_offset, program.rules, frame.signal)


def _read_common(memory: Memory, address: int) -> _Frame:
    common = _entry_bytes(memory, address)
    if common.take("I") != 0 or common.take("B") not in (1, 3):
        raise NoTable("no CIE")
    augmentation = b""
    while byte := common.take("B"):
        augmentation += bytes((byte,))
    frame = _Frame(code_align=common.uleb(), data_align=common.sleb(), return_register=common.uleb())
    if augmentation.startswith(b"z"):
        frame.augmented = True
        data = _Bytes(common.block(), 0)
        for letter in augmentation[1:].decode("latin1"):
            if letter == "R":
                frame.encoding = data.take("B")
            elif letter == "P":
                data.pointer(data.take("B") & 0x0F)
            elif letter == "L":
                data.take("B")
            elif letter == "S":
                frame.signal = True
            else:
                raise NoTable(f"augmentation {augmentation!r}")
    elif augmentation:
        raise NoTable(f"augmentation {augmentation!r}")
    frame.initial = common.data[common.at :]
    return frame


class _Program:
    def __init__(self, frame: _Frame, start: int) -> None:
        self.frame = frame
        self.location = start
        self.cfa: Rule | None = None
        self.cfa_offset = 0
        self.rules: dict[int, Rule] = {}
        self.initial_rules: dict[int, Rule] = {}
        self.remembered: list[tuple[Rule | None, int, dict[int, Rule]]] = []

    def run(self, code: _Bytes, until: int) -> None:
        """Interprets instructions up to address `until`."""
        while code.at < len(code.data):
            byte = code.take("B")
            high, low = byte & 0xC0, byte & 0x3F
            if high == 0x40 or byte in (0x02, 0x03, 0x04):  # advance_loc
                delta = low if high else code.take({0x02: "B", 0x03: "H", 0x04: "I"}[byte])
                self.location += delta * self.frame.code_align
                if self.location > until:
                    return
            elif high == 0x80:
                self.rules[low] = Rule("offset", code.uleb() * self.frame.data_align)
            elif high == 0xC0:
                self._restore(low)
            else:
                self._other(byte, code)

    def _restore(self, register: int) -> None:
        if register in self.initial_rules:
            self.rules[register] = self.initial_rules[register]
        else:
            self.rules.pop(register, None)

    def _other(self, byte: int, code: _Bytes) -> None:
        align = self.frame.data_align
        if byte == 0x00:  # nop
            return
        if byte in (0x0C, 0x12):  # def_cfa
            self.cfa = Rule("register", code.uleb())
            self.cfa_offset = code.uleb() if byte == 0x0C else code.sleb() * align
        elif byte == 0x0D:
            self.cfa = Rule("register", code.uleb())
        elif byte in (0x0E, 0x13):
            self.cfa_offset = code.uleb() if byte == 0x0E else code.sleb() * align
        elif byte == 0x0F:
            self.cfa = Rule("expression", 0, code.block())
        elif byte in (0x05, 0x11):  # offset_extended
            register = code.uleb()
            self.rules[register] = Rule("offset", (code.uleb() if byte == 0x05 else code.sleb()) * align)
        elif byte == 0x06:
            self._restore(code.uleb())
        elif byte in (0x07, 0x08):
            self.rules[code.uleb()] = Rule("undefined" if byte == 0x07 else "same")
        elif byte == 0x09:
            register = code.uleb()
            self.rules[register] = Rule("register", code.uleb())
        elif byte == 0x0A:
            self.remembered.append((self.cfa, self.cfa_offset, dict(self.rules)))
        elif byte == 0x0B:
            self.cfa, self.cfa_offset, self.rules = self.remembered.pop()
        elif byte in (0x10, 0x16):
            register = code.uleb()
            self.rules[register] = Rule("expression" if byte == 0x10 else "value expression", 0, code.block())
        elif byte in (0x14, 0x15):
            register = code.uleb()
            self.rules[register] = Rule("value", (code.uleb() if byte == 0x14 else code.sleb()) * align)
        elif byte == 0x2E:  # GNU_args_size
            code.uleb()
        else:
            raise NoTable(f"CFA instruction {byte:#x}")
