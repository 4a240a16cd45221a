"""Names of return addresses, compared with what binutils say of the same real ELF files."""

from __future__ import annotations

import bisect
import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frida_rtetrack.reports.dump import split_frames
from frida_rtetrack.symbols.demangle import demangle
from frida_rtetrack.symbols.elf import ElfError, ElfFile
from frida_rtetrack.symbols.symbolizer import PAGE_BYTES, Frame, Module, ModuleMap, Symbolizer, format_frame, frame_json

BASE = 0x7F12_3450_0000
LIBRTE_EAL = Path("/usr/lib/x86_64-linux-gnu/librte_eal.so.23")

HEADER = """
extern int sink(int);
static inline __attribute__((always_inline)) int leaf(int x) {
    int y = sink(x);
    return y + 1;
}
static inline __attribute__((always_inline)) int mid(int x) {
    return leaf(x + 3) * 2;
}
"""
SOURCE = """
#include "inlined.h"
__attribute__((noinline)) int sink(int x) { volatile int y = x; return y; }
int before(int x) { return sink(x) - 7; }
int outer(int x) { return mid(x) + 5; }
static __attribute__((noinline, noipa)) int hidden(int x) { return leaf(x) + mid(x + 1); }
__attribute__((noinline)) int caller(int x) { return hidden(x) + outer(x) + before(x); }
"""
MAIN = "int caller(int); int main(int argc, char **argv) { (void)argv; return caller(argc) == 12345; }\n"
ASSEMBLY = """
    .text
    .globl sized
    .type sized,@function
sized:
    call target
    ret
    .size sized,.-sized
    .p2align 6
    .type around,@function
around:
    nop
    .type nested,@function
nested:
    nop
    .size nested,.-nested
    call target
    ret
    .size around,.-around
    .p2align 6
    .type no_size,@function
no_size:
    call target
    ret
    .p2align 6
no_type:
    call target
    ret
target:
    ret
    .section .note.GNU-stack,"",@progbits
"""


COLD = """
extern void abort(void), puts(const char *);
__attribute__((noinline, noipa, cold)) void report(const char *text) { puts(text); }
__attribute__((noinline)) int checked(int x) {
    if (__builtin_expect(x > 40, 0)) { report("too many"); report("really"); abort(); }
    return x * 3;
}
int main(int argc, char **argv) { (void)argv; return checked(argc); }
"""
CPP = """
#include <map>
namespace ns {
template <class K, class V> struct Table {
    __attribute__((noinline, noipa)) static int size(std::map<K, V> const &map, int (*f)(int, int)) {
        return f(map.size(), 1);
    }
};
}
int add(int a, int b) { return a + b; }
int main() { return ns::Table<int, char>::size({}, add); }
"""


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """build(*gcc flags, name=..., **sources) compiles the sources; calls with the same flags share the file."""
    built: dict[object, Path] = {}

    def compile_once(*flags: str, compiler: str = "gcc", sources: tuple[str, ...] = ("lib.c", "main.c")) -> Path:
        key = (flags, compiler, sources)
        if key not in built:
            directory = tmp_path_factory.mktemp("elf")
            texts = {
                "inlined.h": HEADER,
                "lib.c": SOURCE,
                "main.c": MAIN,
                "asm.s": ASSEMBLY,
                "cold.c": COLD,
                "cpp.cpp": CPP,
            }
            for name, text in texts.items():
                (directory / name).write_text(text)
            run(compiler, "-o", "program", *flags, *sources, cwd=directory)
            built[key] = directory / "program"
        return built[key]

    return compile_once


def run(*command: str, cwd: Path | None = None) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


def copied(path: Path, directory: Path, *strip_flags: str) -> Path:
    """A copy of the file in `directory`, stripped if there are flags for it."""
    directory.mkdir(parents=True, exist_ok=True)
    copy = directory / path.name
    shutil.copy(path, copy)
    if strip_flags:
        run("strip", *strip_flags, str(copy))
    return copy


def module_of(path: Path, base: int = BASE, **fields: object) -> Module:
    low, _, end = ElfFile(os.open(path, os.O_RDONLY)).memory_range(PAGE_BYTES)
    return Module(str(path), base, end - low, 0, **fields)  # type: ignore[arg-type]


def resolver(module: Module, **options: object) -> Callable[[int], list[Frame]]:
    """Frames of the call instruction that covers an offset from the module's base, i.e. returning to offset + 1."""
    modules = ModuleMap()
    modules.add(module)
    symbolizer = Symbolizer(modules, **options)  # type: ignore[arg-type]
    return lambda offset: symbolizer.resolve(0, 0, [module.base + offset + 1])


def functions(path: Path, *nm_flags: str) -> dict[str, range]:
    """Function symbols with a size, by name, from nm."""
    lines = (line.split() for line in run("nm", "--defined-only", "-S", *nm_flags, str(path)).splitlines())
    sized = (line for line in lines if len(line) == 4 and line[2] in "tTwWi")
    return {name.split("@")[0]: range(int(at, 16), int(at, 16) + int(size, 16)) for at, size, _, name in sized}


def addr2line(path: Path, addresses: list[int]) -> list[list[tuple[str, str, int]]]:
    """(function, file, line), innermost first, for each address."""
    answers: list[list[tuple[str, str, int]]] = []
    lines = iter(run("addr2line", "-afie", str(path), *map(hex, addresses)).splitlines())
    for line in lines:
        if line.startswith("0x"):
            answers.append([])
        else:
            file, number = next(lines).split(" ")[0].rsplit(":", 1)
            answers[-1].append((line, file, int(number) if number.isdigit() else 0))
    return answers


def shown(frames: list[Frame]) -> list[tuple[str | None, str | None, int | None]]:
    return [(frame.function, frame.file, frame.line) for frame in frames]


# Debug information


@pytest.mark.parametrize(
    "flags",
    [("-O2", "-g"), ("-O2", "-g", "-gz=zlib"), ("-O2", "-g", "-gdwarf-4"), ("-O0", "-g"), ("-O2", "-g", "-no-pie")],
    ids=" ".join,
)
def test_every_byte_of_the_code_is_named_as_addr2line_names_it(
    build: Callable[..., Path], flags: tuple[str, ...]
) -> None:
    program = build(*flags)
    low = 0x400000 if "-no-pie" in flags else 0
    resolve = resolver(module_of(program))
    code = [at for name in ("sink", "before", "outer", "hidden", "caller", "main") for at in functions(program)[name]]
    for address, expected in zip(code, addr2line(program, code), strict=True):
        frames = resolve(address - low)
        assert shown(frames) == expected
        assert [frame.inlined for frame in frames] == [True] * (len(expected) - 1) + [False]


def test_inlined_functions_come_first_and_carry_the_same_address(build: Callable[..., Path]) -> None:
    program = build("-O2", "-g")
    outer = functions(program)["outer"]
    resolve = resolver(module_of(program))
    frames = next(found for at in outer if len(found := resolve(at)) == 3)
    assert [frame.function for frame in frames] == ["leaf", "mid", "outer"]
    assert [frame.inlined for frame in frames] == [True, True, False]
    assert {frame.address for frame in frames} == {frames[0].address}
    assert [Path(str(frame.file)).name for frame in frames] == ["inlined.h", "inlined.h", "lib.c"]
    assert [frame.symbol for frame in frames] == [None, None, "outer"]
    assert frames[2].function_offset == frames[2].address - BASE - outer.start


def test_a_return_address_after_a_functions_last_byte_belongs_to_that_function(build: Callable[..., Path]) -> None:
    program = build("-O2", "-g")
    before = functions(program)["before"]
    (frame,) = resolver(module_of(program))(before.stop - 1)
    assert (frame.function, frame.function_offset) == ("before", len(before))
    assert frame.offset == before.stop


def test_the_cold_part_of_a_function_has_its_name_and_its_own_symbol(build: Callable[..., Path]) -> None:
    program = build("-O2", "-g", sources=("cold.c",))
    cold = functions(program)["checked.cold"]
    (frame,) = resolver(module_of(program))(cold.start + 2)
    assert (frame.function, frame.symbol, frame.function_offset) == ("checked", "checked.cold", 3)
    assert format_frame(frame) == f"{program}(checked.cold+0x3) [{BASE + cold.start + 3:#x}]"


def test_debug_information_without_a_symbol_table_names_functions_without_an_offset(
    build: Callable[..., Path], tmp_path: Path
) -> None:
    program = build("-O2", "-g", sources=("lib.c", "main.c", "asm.s"))
    stripped = copied(program, tmp_path, "--strip-all", "--keep-section=.debug*")
    known, resolve = functions(program), resolver(module_of(stripped))
    frames = next(found for at in known["hidden"] if len(found := resolve(at)) == 3)
    assert [frame.function for frame in frames] == ["leaf", "mid", "hidden"]
    assert (frames[2].symbol, frames[2].function_offset) == (None, None)
    assert format_frame(frames[2]) == f"{stripped}(hidden) [{frames[2].address:#x}]"
    (frame,) = resolve(known["sized"].start)
    assert (frame.function, Path(str(frame.file)).name, frame.line) == (None, "asm.s", 6)


def test_code_without_debug_information_in_a_file_that_has_some_keeps_its_symbols_name(tmp_path: Path) -> None:
    (tmp_path / "cold.c").write_text(COLD)
    (tmp_path / "with.c").write_text("int with_debug(int x) { return x + 1; }\n")
    run("gcc", "-O2", "-c", "cold.c", cwd=tmp_path)
    run("gcc", "-O2", "-g", "-o", "program", "with.c", "cold.o", cwd=tmp_path)
    known, resolve = functions(tmp_path / "program"), resolver(module_of(tmp_path / "program"))
    (cold,), (debug,) = resolve(known["checked.cold"].start), resolve(known["with_debug"].start)
    assert (cold.function, cold.file) == ("checked.cold", None)
    assert (debug.function, debug.line) == ("with_debug", 1)


# Symbol tables alone


def test_where_symbols_nest_the_inner_one_counts_as_far_as_it_reaches(build: Callable[..., Path]) -> None:
    program = build("-g", sources=("asm.s", "main.c", "lib.c"))
    around = functions(program)["around"].start
    resolve = resolver(module_of(program))
    names = [resolve(around + at)[-1].function for at in range(4)]
    assert names == ["around", "nested", "around", "around"]


def test_without_debug_information_the_symbol_that_holds_the_address_names_it(
    build: Callable[..., Path], tmp_path: Path
) -> None:
    program = copied(build("-O2", "-g"), tmp_path, "-g")
    known = functions(program)
    resolve = resolver(module_of(program))
    for name in ("sink", "before", "outer", "hidden", "caller", "main"):
        for address in known[name]:
            frame = Frame(
                BASE + address + 1, "program", address + 1, name, address + 1 - known[name].start, None, None, False,
                str(program), name,
            )  # fmt: skip
            assert resolve(address) == [frame]


@pytest.mark.parametrize("strip_flags", [(), ("-g",), ("--strip-unneeded",)], ids=str)
def test_no_byte_outside_of_every_sized_function_gets_a_name(
    build: Callable[..., Path], tmp_path: Path, strip_flags: tuple[str, ...]
) -> None:
    program = copied(build("-g", sources=("asm.s", "main.c", "lib.c")), tmp_path, *strip_flags)
    sized = set().union(*functions(program).values())
    assert functions(build("-g", sources=("asm.s", "main.c", "lib.c"))).keys() >= {"sized", "caller"}
    resolve = resolver(module_of(program))
    for offset in range(module_of(program).size - 1):
        (frame,) = resolve(offset)[-1:]
        assert (frame.function is not None) == (offset in sized), hex(offset)


def test_a_static_function_of_a_stripped_library_has_module_and_offset_and_no_name(
    build: Callable[..., Path], tmp_path: Path
) -> None:
    library = build("-O2", "-shared", "-fPIC", sources=("lib.c",))
    known = functions(library)
    stripped = copied(library, tmp_path, "--strip-all")
    resolve = resolver(module_of(stripped))
    assert [frame.function for frame in resolve(known["caller"].start)] == ["caller"]
    (frame,) = resolve(known["hidden"].start + 4)
    offset = known["hidden"].start + 5
    assert frame == Frame(BASE + offset, "program", offset, None, None, None, None, False, str(stripped))
    assert format_frame(frame) == f"{stripped}(+{offset:#x}) [{BASE + offset:#x}]"


@pytest.mark.skipif(not LIBRTE_EAL.exists(), reason="Debian's DPDK 22.11 is not installed")
def test_debians_librte_eal_is_named_by_its_exported_functions_only() -> None:
    exported = functions(LIBRTE_EAL, "-D")
    assert "rte_malloc_socket" in exported
    resolve = resolver(module_of(LIBRTE_EAL), debug_directories=())
    starts = sorted((code.start, code.stop, name) for name, code in exported.items())
    aliases: dict[int, set[str]] = {}
    for start, _, name in starts:
        aliases.setdefault(start, set()).add(name)
    named = nameless = 0
    for offset in range(starts[0][0], starts[-1][1], 37):
        (frame,) = resolve(offset)
        start, stop, _ = starts[bisect.bisect_right(starts, (offset, 1 << 64, "")) - 1]
        if offset < stop:
            assert frame.function in aliases[start]
            named += 1
        else:
            assert frame.function is None
            nameless += 1
    assert named > 1000
    assert nameless > 1000


def test_of_several_names_of_a_function_the_plain_exported_one_is_chosen(tmp_path: Path) -> None:
    source = """
        int __impl_plain(int x) { return x + 1; }
        extern int plain(int) __attribute__((alias("__impl_plain")));
        static int aaa(int) __attribute__((alias("__impl_plain"), used));
    """
    (tmp_path / "alias.c").write_text(source)
    run("gcc", "-O2", "-shared", "-fPIC", "-o", "alias.so", "alias.c", cwd=tmp_path)
    offset = functions(tmp_path / "alias.so")["plain"].start
    assert [frame.function for frame in resolver(module_of(tmp_path / "alias.so"))(offset)] == ["plain"]


def test_a_symbol_table_in_gnu_debugdata_names_static_functions(build: Callable[..., Path], tmp_path: Path) -> None:
    library = build("-O2", "-shared", "-fPIC", sources=("lib.c",))
    hidden = functions(library)["hidden"]
    mini = copied(library, tmp_path / "mini")
    (tmp_path / "mini.xz").write_bytes(lzma.compress(mini.read_bytes()))
    stripped = copied(library, tmp_path, "--strip-all")
    run("objcopy", "--add-section", f".gnu_debugdata={tmp_path}/mini.xz", str(stripped))
    assert [frame.function for frame in resolver(module_of(stripped))(hidden.start)] == ["hidden"]


# Detached debug files


@pytest.fixture(scope="session")
def debug_file(build: Callable[..., Path]) -> Path:
    program = build("-O2", "-g", "-Wl,--build-id=sha1")
    debug = program.parent / "program.debug"
    run("objcopy", "--only-keep-debug", str(program), str(debug))
    return debug


@pytest.fixture
def stripped(debug_file: Path, tmp_path: Path) -> Path:
    return copied(debug_file.parent / "program", tmp_path / "bin", "--strip-all")


def install_by_build_id(debug: Path, directory: Path) -> Path:
    build_id = ElfFile(os.open(debug, os.O_RDONLY)).build_id
    assert build_id is not None
    path = directory / ".build-id" / build_id[:1].hex() / f"{build_id[1:].hex()}.debug"
    path.parent.mkdir(parents=True)
    shutil.copy(debug, path)
    return path


def hidden_names(
    debug_file: Path, module: Module, directories: tuple[Path, ...] = (), **options: object
) -> list[str | None]:
    hidden = functions(debug_file.parent / "program")["hidden"]
    resolve = resolver(module, debug_directories=[str(directory) for directory in directories], **options)
    frames = next((found for at in hidden if len(found := resolve(at)) == 3), resolve(hidden.start))
    assert all(frame.file for frame in frames) == (len(frames) == 3)
    return [frame.function for frame in frames]


ALL_NAMES = ["leaf", "mid", "hidden"]


def test_a_stripped_program_without_its_debug_file_has_no_static_names(debug_file: Path, stripped: Path) -> None:
    assert hidden_names(debug_file, module_of(stripped)) == [None]


def test_debug_file_is_found_by_build_id(debug_file: Path, stripped: Path, tmp_path: Path) -> None:
    install_by_build_id(debug_file, tmp_path / "debug")
    assert hidden_names(debug_file, module_of(stripped), (tmp_path / "debug",)) == ALL_NAMES


def test_debug_file_of_another_build_is_not_believed(
    build: Callable[..., Path], debug_file: Path, stripped: Path, tmp_path: Path
) -> None:
    path = install_by_build_id(debug_file, tmp_path / "debug")
    shutil.copy(build("-O2", "-g"), path)
    run("objcopy", "--remove-section=.note.gnu.build-id", str(path))
    assert hidden_names(debug_file, module_of(stripped), (tmp_path / "debug",)) == [None]


@pytest.mark.parametrize("place", ["bin", "bin/.debug", "global"])
def test_debug_file_is_found_by_debuglink(debug_file: Path, stripped: Path, tmp_path: Path, place: str) -> None:
    run("objcopy", f"--add-gnu-debuglink={debug_file}", str(stripped))
    directory = tmp_path / place if place != "global" else Path(f"{tmp_path}/global{stripped.parent}")
    copied(debug_file, directory)
    assert hidden_names(debug_file, module_of(stripped), (tmp_path / "global",)) == ALL_NAMES


def test_debug_file_with_another_crc_is_not_believed(debug_file: Path, stripped: Path) -> None:
    run("objcopy", f"--add-gnu-debuglink={debug_file}", str(stripped))
    copy = copied(debug_file, stripped.parent)
    with copy.open("ab") as file:
        file.write(b"\0")
    assert hidden_names(debug_file, module_of(stripped)) == [None]


@pytest.mark.skipif(shutil.which("dwz") is None, reason="dwz is not installed")
def test_names_that_are_in_a_dwz_file_are_left_out_and_lines_stay(
    debug_file: Path, stripped: Path, tmp_path: Path
) -> None:
    copies = [install_by_build_id(debug_file, tmp_path / "debug"), copied(debug_file, tmp_path / "other")]
    run("dwz", "-m", f"{tmp_path}/common", *map(str, copies))
    assert hidden_names(debug_file, module_of(stripped), (tmp_path / "debug",)) == [None, None, "hidden"]


# Files that are not what was loaded


@pytest.fixture(scope="session")
def program(build: Callable[..., Path]) -> Path:
    return build("-O2", "-g", "-Wl,--build-id=sha1")


def test_a_file_with_another_build_id_than_the_loaded_one_gives_no_names(program: Path) -> None:
    offset = functions(program)["outer"].start
    build_id = ElfFile(os.open(program, os.O_RDONLY)).build_id
    assert build_id is not None
    assert build_id.hex() in run("readelf", "-n", str(program))
    assert resolver(module_of(program, build_id=build_id))(offset)[-1].function == "outer"
    assert resolver(module_of(program, build_id=b"another"))(offset)[-1].function is None


def test_a_file_of_another_extent_than_the_loaded_module_gives_no_names(program: Path) -> None:
    module, offset = module_of(program), functions(program)["outer"].start
    for pages, function in ((-2, None), (0, "outer"), (1, None)):
        other = Module(module.path, module.base, module.size + pages * PAGE_BYTES, 0)
        assert resolver(other)(offset)[-1].function == function


def test_a_library_rebuilt_between_two_loads_is_read_anew(build: Callable[..., Path], tmp_path: Path) -> None:
    library = copied(build("-O2", "-shared", "-fPIC", sources=("lib.c",)), tmp_path)
    other = build("-O2", "-shared", "-fPIC", "-Dcaller=renamed", sources=("lib.c",))
    modules = ModuleMap()
    modules.add(module_of(library, unloaded_epoch=5))
    symbolizer = Symbolizer(modules)
    offset = functions(library)["caller"].start
    assert [frame.function for frame in symbolizer.resolve(0, 1, [BASE + offset + 1])] == ["caller"]
    copied(other, tmp_path / "new").replace(library)
    modules.add(module_of(library, loaded_epoch=5))
    offset = functions(library)["renamed"].start
    assert [frame.function for frame in symbolizer.resolve(0, 5, [BASE + offset + 1])] == ["renamed"]


@pytest.mark.parametrize(
    "path",
    ["linux-vdso.so.1", "[vdso]", "/memfd:jit (deleted)", "/nonexistent/lib.so", "/dev/null", "/", "/etc/passwd"],
)
def test_what_is_no_elf_file_keeps_its_module_and_offset(path: str) -> None:
    (frame,) = resolver(Module(path, BASE, 0x2000, 0))(0x123)
    assert (frame.module, frame.offset, frame.function) == (path.rsplit("/", 1)[-1], 0x124, None)
    assert format_frame(frame) == f"{path}(+0x124) [{BASE + 0x124:#x}]"


def test_a_deleted_file_is_not_looked_for_under_its_old_name(program: Path, tmp_path: Path) -> None:
    decoy = tmp_path / "lib.so (deleted)"
    shutil.copy(program, decoy)
    assert resolver(module_of(decoy))(functions(program)["outer"].start)[-1].function is None


def test_a_pipe_in_place_of_the_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lib.so")
    (frame,) = resolver(Module(str(tmp_path / "lib.so"), BASE, 0x2000, 0))(0x123)
    assert frame.function is None


def test_an_address_in_no_module_is_a_frame_of_its_own() -> None:
    (frame,) = Symbolizer(ModuleMap()).resolve(0, 0, [0x1234])
    assert frame == Frame(0x1234, None, None, None, None, None, None, False)
    assert format_frame(frame) == "[0x1234]"


def test_files_are_read_under_the_targets_root_first(program: Path, stripped: Path, tmp_path: Path) -> None:
    """As for a container: the path is the target's, and the host has another (stripped) file there."""
    root = tmp_path / "root"
    copied(program, Path(f"{root}{stripped.parent}"))
    offset = functions(program)["hidden"].start
    assert resolver(module_of(stripped), debug_directories=())(offset)[-1].function is None
    assert resolver(module_of(stripped), root=str(root), debug_directories=())(offset)[-1].function == "hidden"


def test_the_root_serves_after_its_path_is_gone(program: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    copied(program, root / "only-here")
    resolve = resolver(Module("/only-here/program", BASE, module_of(program).size, 0), root=str(root))
    root.rename(tmp_path / "gone")
    assert resolve(functions(program)["outer"].start)[-1].function == "outer"


@settings(max_examples=150, deadline=None, database=None)
@given(data=st.data())
def test_a_damaged_file_gives_frames_and_no_exception(program: Path, data: st.DataObject) -> None:
    content = bytearray(program.read_bytes())
    tables = [*range(64), *range(64, 64 + 13 * 56), *range(len(content) - 40 * 64, len(content))]
    for place in data.draw(st.lists(st.sampled_from(tables), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    length = data.draw(st.sampled_from([len(content), len(content), 0, 10, 63, 64, 1000, len(content) - 64]))
    damaged = program.parent / "damaged"
    damaged.write_bytes(content[:length])
    module = module_of(program)
    resolve = resolver(Module(str(damaged), BASE, module.size, 0))
    for offset in (0, 0x1100, 0x1150, module.size - 1):
        assert resolve(offset)[-1].address == BASE + offset + 1


SHT_SYMTAB, OF_SYMTAB = 2, 10_000


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0x20, 1 << 63),  # where the segments are
        (0x28, 1 << 40),  # where the sections are
        (0x38, 0),  # how many segments, and the size of a section
        (0x3C, 0xFFF0),  # how many sections
        (0x3E, 0xFFF0),  # which one has the names
        (OF_SYMTAB + 40, 0xFFFF),  # which section has the symbols' names
    ],
)
def test_a_file_with_wrong_headers_gives_no_names(
    build: Callable[..., Path], tmp_path: Path, at: int, value: int
) -> None:
    program = copied(build("-O2", "-g"), tmp_path)
    module, offset = module_of(program), functions(program)["hidden"].start
    content = bytearray(program.read_bytes())
    width = 8 if at < 0x30 else 2
    if at >= OF_SYMTAB:
        sections, count = int.from_bytes(content[0x28:0x30], "little"), int.from_bytes(content[0x3C:0x3E], "little")
        headers = (sections + 64 * index for index in range(count))
        at += next(header for header in headers if content[header + 4] == SHT_SYMTAB) - OF_SYMTAB
    content[at : at + width] = value.to_bytes(width, "little")
    program.write_bytes(content)
    (frame,) = resolver(module)(offset)
    assert (frame.function, frame.offset) == (None, offset + 1)


def test_no_elf_file_is_an_elf_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("#!/bin/sh\n" * 100)
    with pytest.raises(ElfError):
        ElfFile(os.open(tmp_path / "text", os.O_RDONLY))


# Modules over time


def test_a_stack_is_named_by_the_modules_of_its_own_epoch() -> None:
    modules = ModuleMap()
    old, new = Module("/old.so", 0x1000, 0x2000, 0, 1), Module("/new.so", 0x1000, 0x1000, 0, 4)
    modules.add(old)
    modules.unload(0, 0x1000, 3)
    modules.add(new)
    found = [modules.find(0, epoch, 0x1800) for epoch in range(6)]
    assert [module and module.path for module in found] == [None, "/old.so", "/old.so", None, "/new.so", "/new.so"]
    assert modules.find(0, 4, 0x2800) is None
    assert modules.find(1, 4, 0x1800) is None


def test_a_module_loaded_later_inside_of_another_ones_range_does_not_hide_it_before() -> None:
    modules = ModuleMap()
    modules.add(Module("/large.so", 0x1000, 0x9000, 0, 0, 5))
    modules.add(Module("/small.so", 0x3000, 0x1000, 0, 5))
    found = modules.find(0, 4, 0x8000)
    assert found is not None
    assert found.path == "/large.so"


def test_a_call_in_the_modules_last_bytes_returns_to_its_end() -> None:
    modules = ModuleMap()
    modules.add(Module("/gone.so", 0x1000, 0x1000, 0))
    symbolizer = Symbolizer(modules)
    found = [frame.module for frame in symbolizer.resolve(0, 0, [0x1000, 0x1001, 0x2000, 0x2001])]
    assert found == [None, "gone.so", "gone.so", None]


def test_adding_a_module_again_updates_it() -> None:
    modules = ModuleMap()
    modules.add(Module("/a.so", 0x1000, 0x1000, 0, 1))
    modules.add(Module("/a.so", 0x1000, 0x1000, 0, 1, unloaded_epoch=2))
    assert modules.find(0, 1, 0x1000) is not None
    assert modules.find(0, 2, 0x1000) is None


spans = st.builds(
    lambda base, size, process, start, length: Module(f"/{base}", base, size, process, start, start + length),
    st.integers(0, 60), st.integers(1, 30), st.integers(0, 1), st.integers(0, 5), st.integers(0, 4),
)  # fmt: skip


@settings(max_examples=150, deadline=None, database=None)
@given(st.lists(spans, max_size=12), st.integers(0, 1), st.integers(0, 9), st.integers(0, 95))
def test_finding_a_module_agrees_with_looking_at_all_of_them(
    added: list[Module], process: int, epoch: int, address: int
) -> None:
    modules = ModuleMap()
    for module in added:
        modules.add(module)
    known = {(module.process, module.base, module.loaded_epoch): module for module in added}.values()
    holds = [
        module for module in known
        if module.process == process and module.base <= address < module.base + module.size
        and module.loaded_epoch <= epoch < module.unloaded_epoch
    ]  # fmt: skip
    assert modules.find(process, epoch, address) == max(holds, key=lambda m: (m.base, m.loaded_epoch), default=None)


# Names and text


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("rte_malloc_socket", "rte_malloc_socket"),
        ("_ZN2ns1fEi", "ns::f(int)"),
        ("_ZL4statPKc.isra.0", "stat(char const*) [clone .isra.0]"),
        ("_Znot mangled", "_Znot mangled"),
        ("_ZN1r1m10S$LT$T$GT$2go17h001e64f59a089f55E", "r::m::S<T>::go"),
        ("_ZN42_$LT$$RF$T$u20$as$u20$core..fmt..Debug$GT$3fmt17h0123456789abcdefE", "<&T as core::fmt::Debug>::fmt"),
        ("_RNvCs6GmmlP4bgsG_1r4main", "r::main"),
        ("_RNvMNtCs6GmmlP4bgsG_1r1mINtB2_1SINtNtCslNYArtu3iFV_5alloc3vec3VechEE2goB4_",
         "<r::m::S<alloc::vec::Vec<u8>>>::go"),
        ("_RNCNvCs6GmmlP4bgsG_1r4main0B3_", "r::main::{closure#0}"),
        ("_RNvCs6GmmlP4bgsG_1ru8bung_mdaE", "_RNvCs6GmmlP4bgsG_1ru8bung_mdaE"),
        ("_RNvB6_1aC1b", "_RNvB6_1aC1b"),
        ("_RC0", "_RC0"),
        ("_R", "_R"),
        ("_RB_", "_RB_"),
    ],
)  # fmt: skip
def test_demangle(mangled: str, name: str) -> None:
    assert demangle(mangled) == name


@settings(max_examples=300, deadline=None, database=None)
@given(st.text(alphabet="_RZNCINMXYvBsEhL0123456789uTFDGKpA", max_size=40))
def test_demangling_never_fails(text: str) -> None:
    assert demangle("_R" + text)
    assert demangle("_ZN" + text)


def test_cxx_frames_survive_being_joined_and_split(build: Callable[..., Path]) -> None:
    program = build("-O1", compiler="g++", sources=("cpp.cpp",))
    mangled, code = next(item for item in functions(program).items() if item[0].startswith("_ZN2ns5Table"))
    main = functions(program)["main"]
    resolve = resolver(module_of(program))
    texts = [format_frame(resolve(at)[-1]) for at in (code.start + 8, main.start, 0)] + ["[0x12]"]
    name = re.sub(r"(?<=>) (?=>)", "", run("c++filt", mangled).strip())  # LLVM writes `>>`, as C++ has it since 2011
    assert ", " in name
    assert texts[0] == f"{program}({name}+0x9) [{BASE + code.start + 9:#x}]"
    assert split_frames(" ".join(texts)) == texts


def test_frame_json_has_the_summarys_keys() -> None:
    frame = Frame(0x7F00_1234, "lib.so", 0x234, "parse", 0x10, "parse.c", 7, False, "/usr/lib/lib.so", "parse.part.0")
    assert frame_json(frame) == {
        "address": "0x7f001234", "module": "lib.so", "offset": 0x234, "function": "parse", "file": "parse.c", "line": 7,
        "inlined": False,
    }  # fmt: skip
    assert format_frame(frame) == "/usr/lib/lib.so(parse.part.0+0x10) [0x7f001234]"


def test_an_inlined_function_is_written_without_an_offset() -> None:
    frame = Frame(0x1234, "lib.so", 0x234, "leaf", None, "leaf.h", 7, True, "/usr/lib/lib.so")
    assert format_frame(frame) == "/usr/lib/lib.so(leaf) [0x1234]"
