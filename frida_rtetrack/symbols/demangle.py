"""Linker names -> names as a person writes them: C++ (Itanium ABI), Rust legacy and Rust v0.

C++ is left to libstdc++'s own `__cxa_demangle` (numpy needs that library too, so it is there). `symbolic` has no
demangler in its Python bindings. What cannot be demangled is returned as it is.
"""

from __future__ import annotations

import ctypes
import functools
import re
from collections.abc import Callable

_RUST_LEGACY = re.compile(r"_ZN(.+)17h[0-9a-f]{16}E(?:\.llvm\.[0-9A-F]+)?\Z")
_RUST_ESCAPE = re.compile(r"\$(LT|GT|LP|RP|RF|BP|SP|C|u[0-9a-f]+)\$|\.\.")
_RUST_ESCAPES = {"LT": "<", "GT": ">", "LP": "(", "RP": ")", "RF": "&", "BP": "*", "SP": "@", "C": ","}
# fmt: off
_RUST_BASIC_TYPES = {
    "a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8", "i": "isize", "j": "usize",
    "l": "i32", "m": "u32", "n": "i128", "o": "u128", "s": "i16", "t": "u16", "u": "()", "v": "...", "x": "i64",
    "y": "u64", "z": "!", "p": "_",
}
# fmt: on
_MAX_DEPTH = 150
_MAX_STEPS = 5000


@functools.lru_cache(maxsize=1 << 16)
def demangle(name: str) -> str:
    """`_ZN2ns1fEi` -> `ns::f(int)`, `_RNvC1r4main` -> `r::main`; a C name, or one that is not understood, as it is."""
    if name.startswith("_R"):
        return _rust_v0(name)
    if name.startswith("_ZN") and (legacy := _rust_legacy(name)) is not None:
        return legacy
    return _cxx(name) if name.startswith("_Z") else name


@functools.cache
def _cxa_demangle() -> Callable[[bytes], bytes | None] | None:
    try:
        function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    free = ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]

    def call(name: bytes) -> bytes | None:
        text = function(name, None, None, None)
        if not text:
            return None
        try:
            return ctypes.string_at(text)
        finally:
            free(text)

    return call


def _cxx(name: str) -> str:
    call = _cxa_demangle()
    text = call(name.encode("utf-8", "replace")) if call else None
    return name if text is None else text.decode("utf-8", "replace")


def _rust_legacy(name: str) -> str | None:
    """rustc's `legacy` scheme: a C++ nested name whose last part is a hash, with escapes for what C++ cannot say."""
    match = _RUST_LEGACY.match(name)
    if match is None:
        return None
    rest, parts = match[1], []
    while rest:
        digits = re.match(r"[0-9]+", rest)
        if digits is None or len(rest) < digits.end() + int(digits[0]):
            return None
        end = digits.end() + int(digits[0])
        part, rest = rest[digits.end() : end], rest[end:]
        parts.append(_RUST_ESCAPE.sub(_rust_unescape, part.removeprefix("_") if part.startswith("_$") else part))
    return "::".join(parts)


def _rust_unescape(match: re.Match[str]) -> str:
    code = match[1]
    if code is None:
        return "::"
    return _RUST_ESCAPES.get(code) or chr(min(int(code[1:], 16), 0x10FFFF))


def _rust_v0(name: str) -> str:
    try:
        return _RustV0(name[2:]).symbol() or name
    except (ValueError, IndexError, KeyError, RecursionError):
        return name


class _RustV0:
    """Recursive descent over rustc's `v0` grammar (Rust RFC 2603): each method takes one production and gives its text.

    Crate hashes and integer suffixes are left out, as `rustfilt` and `nm -C` do. Raises ValueError, IndexError or
    KeyError for what does not fit the grammar, or is too deep or too long.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._lifetimes = 0
        self._depth = 0
        self._steps = 0

    def symbol(self) -> str:
        text = self._path(in_value=True)
        if self._text[self._at : self._at + 1].isupper():
            self._path(in_value=False)  # the instantiating crate
        if self._at < len(self._text) and self._text[self._at] not in ".$":
            raise ValueError("text after the name")
        return text

    def _next(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _eat(self, letter: str) -> bool:
        found = self._text[self._at : self._at + 1] == letter
        self._at += found
        return found

    def _until_end(self, production: Callable[[], str]) -> list[str]:
        items = []
        while not self._eat("E"):
            items.append(production())
        return items

    def _number(self) -> int:
        """base-62 number: `_` is 0, `0_` is 1, ..."""
        value = 0
        if self._eat("_"):
            return 0
        while (letter := self._next()) != "_":
            digit = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ".index(letter)
            value = value * 62 + digit
        return value + 1

    def _optional_number(self, letter: str) -> int:
        return self._number() + 1 if self._eat(letter) else 0

    def _identifier(self) -> tuple[str, int]:
        disambiguator = self._optional_number("s")
        return self._plain_identifier(), disambiguator

    def _plain_identifier(self) -> str:
        punycode = self._eat("u")
        digits = re.compile(r"0|[1-9][0-9]*").match(self._text, self._at)
        if digits is None:
            raise ValueError("no identifier")
        self._at = digits.end()
        self._eat("_")
        name = self._text[self._at : self._at + int(digits[0])]
        self._at += int(digits[0])
        if self._at > len(self._text):
            raise ValueError("identifier too long")
        return (name[::-1].replace("_", "-", 1)[::-1]).encode("ascii").decode("punycode") if punycode else name

    def _nested(self, production: Callable[[], str]) -> str:
        """One level deeper, or, at a `B`, the same production at an earlier place."""
        self._depth += 1
        self._steps += 1
        if self._depth > _MAX_DEPTH or self._steps > _MAX_STEPS:
            raise ValueError("too deep or too long")
        start = self._at
        if self._eat("B"):
            target = self._number()
            if target >= start:
                raise ValueError("a reference forward")
            after, self._at = self._at, target
            text = self._nested(production)
            self._at = after
        else:
            text = production()
        self._depth -= 1
        return text

    def _path(self, *, in_value: bool) -> str:
        return self._nested(lambda: self._path_here(in_value))

    def _path_here(self, in_value: bool) -> str:
        tag = self._next()
        if tag == "C":
            return self._identifier()[0]
        if tag == "N":
            space = self._next()
            outer = self._path(in_value=in_value)
            name, disambiguator = self._identifier()
            if space.isupper():  # of the compiler's making
                kind = {"C": "closure", "S": "shim"}.get(space, space)
                return f"{outer}::{{{kind}{':' if name else ''}{name}#{disambiguator}}}"
            return f"{outer}::{name}" if name else outer
        if tag == "I":
            outer = self._path(in_value=in_value)
            arguments = ", ".join(self._until_end(self._generic_argument))
            return f"{outer}{'::' if in_value else ''}<{arguments}>"
        if tag in "MX":
            self._optional_number("s")
            self._path(in_value=False)  # where the impl is written
        elif tag != "Y":
            raise ValueError(f"unknown path {tag}")
        kind = self._type()
        return f"<{kind}>" if tag == "M" else f"<{kind} as {self._path(in_value=False)}>"

    def _generic_argument(self) -> str:
        if self._eat("L"):
            return self._lifetime(self._number())
        return self._constant() if self._eat("K") else self._type()

    def _lifetime(self, index: int) -> str:
        if index == 0:
            return "'_"
        depth = self._lifetimes - index
        if depth < 0:
            raise ValueError("unbound lifetime")
        return "'" + (chr(ord("a") + depth) if depth < 26 else f"_{depth}")

    def _bound(self, production: Callable[[], str]) -> str:
        """A production behind an optional binder of lifetimes: `for<'a> ...`."""
        count = self._optional_number("G")
        if count > _MAX_STEPS:
            raise ValueError("too many lifetimes")
        self._lifetimes += count
        names = ", ".join(self._lifetime(index) for index in range(count, 0, -1))
        text = production()
        self._lifetimes -= count
        return f"for<{names}> {text}" if count else text

    def _type(self) -> str:
        return self._nested(self._type_here)

    def _type_here(self) -> str:
        tag = self._next()
        if tag in _RUST_BASIC_TYPES:
            return _RUST_BASIC_TYPES[tag]
        if tag == "A":
            return f"[{self._type()}; {self._constant()}]"
        if tag == "S":
            return f"[{self._type()}]"
        if tag == "T":
            items = self._until_end(self._type)
            return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
        if tag in "RQ":
            lifetime = self._number() if self._eat("L") else 0
            return f"&{self._lifetime(lifetime) + ' ' if lifetime else ''}{'mut ' if tag == 'Q' else ''}{self._type()}"
        if tag in "PO":
            return f"*{'const' if tag == 'P' else 'mut'} {self._type()}"
        if tag == "F":
            return self._bound(self._function_type)
        if tag == "D":
            bounds = self._bound(lambda: " + ".join(self._until_end(self._dyn_trait)))
            if not self._eat("L"):
                raise ValueError("dyn without a lifetime")
            lifetime = self._number()
            return f"dyn {bounds}{' + ' + self._lifetime(lifetime) if lifetime else ''}"
        self._at -= 1
        return self._path_here(in_value=False)

    def _function_type(self) -> str:
        prefix = "unsafe " if self._eat("U") else ""
        if self._eat("K"):
            abi = "C" if self._eat("C") else self._plain_identifier().replace("_", "-")
            prefix += f'extern "{abi}" '
        arguments = ", ".join(self._until_end(self._type))
        result = self._type()
        return f"{prefix}fn({arguments})" + ("" if result == "()" else f" -> {result}")

    def _dyn_trait(self) -> str:
        trait = self._path(in_value=False)
        bindings = []
        while self._eat("p"):
            bindings.append(f"{self._plain_identifier()} = {self._type()}")
        if not bindings:
            return trait
        return f"{trait[:-1]}, {', '.join(bindings)}>" if trait.endswith(">") else f"{trait}<{', '.join(bindings)}>"

    def _constant(self) -> str:
        return self._nested(self._constant_here)

    def _constant_here(self) -> str:
        tag = self._next()
        if tag == "p":
            return "_"
        if tag not in "abchijlmnostxy":
            raise ValueError(f"unknown constant {tag}")
        sign = "-" if self._eat("n") else ""
        end = self._text.index("_", self._at)
        value = int(self._text[self._at : end] or "0", 16)
        self._at = end + 1
        if tag == "b":
            return ("false", "true")[value]
        return repr(chr(value)) if tag == "c" else f"{sign}{value}"
