"""The unwinder (native/unwind.c), built with the system's compiler and its sanitizers, against what others say.

The programs are in tests/native. What they compare with: glibc's backtrace() for whole stacks, readelf for single rows of
the call-frame tables, the loops in plain C for those in assembly.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "frida_rtetrack" / "native"
PROGRAMS = Path(__file__).parents[1] / "native"
SANITIZERS = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
LIBC = Path("/lib/x86_64-linux-gnu/libc.so.6")

CONTEXTS = [
    ("gcc", "-O0"),
    ("gcc", "-O0 -fomit-frame-pointer"),
    ("gcc", "-O2"),
    ("gcc", "-O2 -fno-omit-frame-pointer"),
    ("gcc", "-O3 -mavx2"),
    ("gcc", "-O2 -no-pie -fno-pie -fcf-protection -fstack-protector-all -fstack-clash-protection"),
    ("clang", "-O0"),
    ("clang", "-O2"),
    ("clang", "-O3 -fno-omit-frame-pointer"),
]


def compiler(name: str) -> str:
    """The compiler's command, or a skipped test if this machine has none."""
    for candidate in (name, f"{name}-14", f"{name}-15", f"{name}-16", f"{name}-19"):
        if shutil.which(candidate):
            return candidate
    pytest.skip(f"no {name} here")


def build(output: Path, *arguments: str | Path, command: str = "gcc") -> Path:
    subprocess.run([command, *arguments, f"-I{NATIVE}", "-o", output], check=True, timeout=120)
    return output


def run(*command: str | Path, timeout: float = 60) -> str:
    """What the program prints; it must exit with 0."""
    # The leak checker stops the process to look at it, and the sanitizer's signal stack would be taken for the test's.
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:use_sigaltstack=0"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unwind")


@pytest.fixture(scope="session")
def checker(folder: Path) -> list[str | Path]:
    """The unwinder and the code that compares it with backtrace(), to be linked to a program."""
    build(folder / "walk_check.o", *SANITIZERS, "-Wall", "-Wextra", "-c", PROGRAMS / "walk_check.c")
    build(folder / "unwind.o", *SANITIZERS, "-Wall", "-Wextra", "-Werror", "-c", NATIVE / "unwind.c")
    libraries = ["-fsanitize=address,undefined", "-pthread", "-ldl", "-rdynamic"]
    return [folder / "walk_check.o", folder / "unwind.o", *libraries]


@pytest.fixture(scope="session")
def programs(folder: Path, checker: list[str | Path]) -> dict[tuple[str, str], Path]:
    """The contexts program by compiler and flags, as far as there are compilers."""
    built: dict[tuple[str, str], Path] = {}
    for number, (name, flags) in enumerate(CONTEXTS):
        found = [command for command in (name, f"{name}-14") if shutil.which(command)]
        if not found:
            continue
        built_object = build(
            folder / f"contexts{number}.o", *flags.split(), "-g", "-c", PROGRAMS / "contexts.c", command=found[0]
        )
        link = ["-no-pie"] if "-no-pie" in flags else []
        built[name, flags] = build(folder / f"contexts{number}", built_object, *checker, *link)
    return built


@pytest.mark.parametrize(("name", "flags"), CONTEXTS)
def test_stacks_are_those_of_backtrace(name: str, flags: str, programs: dict[tuple[str, str], Path]) -> None:
    compiler(name)
    assert ", 0 failed" in run(programs[name, flags])


@pytest.mark.parametrize(("name", "flags"), [("g++", "-O0"), ("g++", "-O2"), ("clang++", "-O2")])
def test_stacks_of_cxx_are_those_of_backtrace(name: str, flags: str, folder: Path, checker: list[str | Path]) -> None:
    built = build(folder / "cxx.o", flags, "-g", "-c", PROGRAMS / "contexts_cxx.cc", command=compiler(name))
    assert ", 0 failed" in run(build(folder / "cxx", built, *checker, command="g++"))


def test_rows_of_an_unloaded_library_are_forgotten(folder: Path, checker: list[str | Path]) -> None:
    libraries = [
        build(folder / f"plugin{which}.so", "-O2", "-fPIC", "-shared", f"-DWHICH={which}", PROGRAMS / "plugin.c")
        for which in (1, 2)
    ]
    built = build(folder / "libraries.o", "-O2", "-g", "-c", PROGRAMS / "libraries.c")
    assert ", 0 failed" in run(build(folder / "libraries", built, *checker), *libraries)


def test_assembly_and_memo_give_what_the_plain_loop_gives(folder: Path) -> None:
    program = build(folder / "equivalence", *SANITIZERS, PROGRAMS / "equivalence.c")
    for seed in ("1", "2", "3"):
        run(program, seed, "300000")


@pytest.mark.parametrize("tables", [LIBC, "contexts"])
def test_damaged_tables_are_survived(tables: Path | str, folder: Path, programs: dict[tuple[str, str], Path]) -> None:
    program = build(folder / "fuzz", *SANITIZERS, PROGRAMS / "fuzz.c")
    damaged = programs["gcc", "-O2"] if tables == "contexts" else Path(tables)
    run(program, damaged, "1", "2.5")


@pytest.mark.parametrize("library", ["libc.so.6", "libm.so.6"])
def test_module_table_holds_what_is_there_and_nothing_else(library: str, folder: Path) -> None:
    program = build(folder / "modules", *SANITIZERS, PROGRAMS / "modules.c")
    assert run(program, f"/lib/x86_64-linux-gnu/{library}") == "ok\n"


def test_modules_come_and_go_while_threads_walk(folder: Path) -> None:
    program = build(folder / "stress", "-g", "-O2", "-fno-omit-frame-pointer", PROGRAMS / "stress.c", "-pthread")
    run(program, "1")
    run(program, "/lib/x86_64-linux-gnu/libm.so.6", "/lib/x86_64-linux-gnu/libresolv.so.2", "1")


def test_threads_do_not_race(folder: Path) -> None:
    flags = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=thread"]
    run(build(folder / "races", *flags, PROGRAMS / "stress.c", "-pthread"), "1")


# ---- rows against readelf ----

PLT = "(DW_OP_breg7 (rsp): 8; DW_OP_breg16 (rip): 0; DW_OP_lit15; DW_OP_and; DW_OP_lit11; DW_OP_ge; DW_OP_lit3; DW_OP_shl; DW_OP_plus)"


@dataclass
class Function:
    """An FDE as readelf prints it: its rows by first address, the expressions that its program names."""

    start: int
    end: int
    signal: bool
    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cfa_expressions: list[str] = field(default_factory=list)
    bp_expressions: list[str] = field(default_factory=list)


def readelf(path: Path, what: str) -> list[str]:
    command = ["readelf", f"--debug-dump={what}", "--debug-dump=no-follow-links", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def functions_of(path: Path) -> list[Function]:
    """Every FDE of the file's .eh_frame."""
    functions: dict[str, Function] = {}
    cies: dict[str, tuple[str, list[tuple[int, dict[str, str]]]]] = {}
    columns: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    for line in readelf(path, "frames-interp"):
        words = re.sub(r" \(\w+\)", "", line).split()  # "r9 (r9)", saved in a register
        if match := re.match(r"([0-9a-f]+) [0-9a-f]+ [0-9a-f]+ CIE \"(\w*)\"", line):
            rows = []
            cies[match[1]] = (match[2], rows)
        elif match := re.match(
            r"([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+) FDE cie=([0-9a-f]+) pc=([0-9a-f]+)\.\.([0-9a-f]+)", line
        ):
            augmentation, initial = cies[match[3]]
            # readelf leaves out the rows of a function, or of a CIE, with no program.
            rows = [(int(match[4], 16), row) for _, row in initial[:1]]
            functions[match[1]] = Function(int(match[4], 16), int(match[5], 16), "S" in augmentation, rows)
        elif words[:1] == ["LOC"]:
            columns = words[1:]
        elif re.match(r"[0-9a-f]{16} ", line):
            if rows and rows[0][0] == int(words[0], 16):
                rows.pop(0)
            rows.append((int(words[0], 16), dict(zip(columns, words[1:], strict=True))))
    function = None
    for line in readelf(path, "frames"):
        if match := re.match(r"([0-9a-f]+) [0-9a-f]+ [0-9a-f]+ (FDE|CIE)", line):
            function = functions.get(match[1])
        elif function and (match := re.match(r"\s+DW_CFA_def_cfa_expression (.*)", line)):
            function.cfa_expressions.append(match[1])
        elif function and (match := re.match(r"\s+DW_CFA_expression: r6 \(rbp\) (.*)", line)):
            function.bp_expressions.append(match[1])
    return list(functions.values())


def expected_rows(function: Function, row: dict[str, str], pc: int) -> set[str] | None:
    """What the unwinder may say of this row; None if this test cannot tell."""
    if row["ra"] == "u":
        return {"outermost"}
    if function.signal:
        return {"signal"}
    if row["ra"] != "c-8":
        return {"unsupported"}
    bp = row.get("rbp", "u")
    place = {"u": "same", "s": "same"}.get(bp, bp)
    if match := re.fullmatch(r"(rsp|rbp)\+(\d+)", row["CFA"]):
        if bp == "exp":
            return None
        if not re.fullmatch(r"same|c-\d+", place):
            place = "lost"
        # "u" is readelf's word for "undefined" and for "nothing said".
        return {f"{row['CFA']} {place}", f"{row['CFA']} lost"} if bp == "u" else {f"{row['CFA']} {place}"}
    if row["CFA"] != "exp":
        return {"unsupported"}
    if set(function.cfa_expressions) == {PLT}:
        return {f"rsp+{16 if pc & 15 >= 11 else 8} same"}
    if len(set(function.cfa_expressions)) != 1:
        return None
    match = re.fullmatch(
        r"\(DW_OP_breg[67] \((rbp|rsp)\): (-?\d+); DW_OP_deref(?:; DW_OP_plus_uconst: (\d+))?\)",
        function.cfa_expressions[0],
    )
    if not match:
        return {"unsupported"}
    if bp == "exp":
        saved = re.fullmatch(r"\(DW_OP_breg6 \(rbp\): (-?\d+)\)", function.bp_expressions[0])
        if len(set(function.bp_expressions)) != 1 or not saved:
            return None
        place = f"rbp{int(saved[1]):+d}"
    return {f"*({match[1]}{int(match[2]):+d})+{match[3] or 0} {place}"}


def check_rows(rows: Path, path: Path) -> Counter[str]:
    """Compares the first and the last address of every row of the file; counts the kinds of rows."""
    pcs: list[tuple[Function, dict[str, str], int]] = []
    for function in functions_of(path):
        ends = [start for start, _ in function.rows[1:]] + [function.end]
        for (start, row), end in zip(function.rows, ends, strict=True):
            pcs += [(function, row, start), (function, row, end - 1)] if end > start else []
            if function.cfa_expressions and row["CFA"] == "exp":
                pcs += [(function, row, pc) for pc in range(start, min(end, start + 64))]
    listing = "\n".join(f"{pc:x}" for _, _, pc in pcs)
    result = subprocess.run([rows, path], input=listing, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    kinds: Counter[str] = Counter()
    wrong = []
    for (function, row, pc), answer in zip(pcs, result.stdout.splitlines(), strict=True):
        expected = expected_rows(function, row, pc)
        if expected is None:
            kinds["not compared"] += 1
            continue
        if answer not in expected:
            wrong.append(f"{pc:#x}: {answer}, not {expected} ({row})")
        kinds[re.sub(r"[-+]?\d+", "N", answer)] += 1
    assert not wrong, "\n".join(wrong[:20])
    return kinds


@pytest.fixture(scope="session")
def rows(folder: Path) -> Path:
    return build(folder / "rows", *SANITIZERS, "-fsanitize-address-use-after-scope", PROGRAMS / "rows.c")


@pytest.mark.parametrize(
    "library",
    ["libc.so.6", "librte_eal.so", "libstdc++.so.6", "libcrypto.so.3", "ld-linux-x86-64.so.2", "librte_hash.so"],
)
def test_rows_of_a_library_are_those_that_readelf_prints(library: str, rows: Path) -> None:
    paths = [
        folder / library
        for folder in (Path("/lib/x86_64-linux-gnu"), Path("/usr/lib/x86_64-linux-gnu"), Path("/lib64"))
    ]
    found = [path for path in paths if path.exists()]
    if not found:
        pytest.skip(f"no {library} here")
    kinds = check_rows(rows, found[0].resolve())
    assert kinds.total() > 500
    assert kinds["not compared"] <= kinds.total() // 100


def test_rows_of_a_program_are_those_that_readelf_prints(rows: Path, programs: dict[tuple[str, str], Path]) -> None:
    kinds: Counter[str] = Counter()
    for program in programs.values():
        kinds += check_rows(rows, program)
    assert kinds["rspN cN"] > 100  # saved rbp in code without frame pointers
    assert kinds["*(rbpN)N rbpN"] > 10  # stacks realigned by gcc
    assert kinds["outermost"] > 0
    assert kinds["not compared"] <= kinds.total() // 100
