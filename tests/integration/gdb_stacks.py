"""Runs inside gdb: writes the stack at each call of rte_malloc and rte_free after chains_begin, as gdb unwinds it.

One JSON line a call: {"function", "type" (rte_malloc's), "frames": [[module, offset of the return address]...]}.
Frames that exist only in the debug information (inlined functions, tail calls) have no return address and are left out.
"""

import json
import os

import gdb  # type: ignore[import-not-found]

for setting in (
    "pagination off",
    "confirm off",
    "breakpoint pending on",
    "backtrace past-main on",
    "backtrace past-entry on",
    "print thread-events off",
    "debuginfod enabled off",
):
    gdb.execute(f"set {setting}", to_string=True)

output = open(os.environ["GDB_STACKS"], "w")


def modules() -> list[tuple[int, int, str, int]]:
    """(start, end, path, base) of each mapping of a file."""
    bases: dict[str, int] = {}
    found = []
    for line in open(f"/proc/{gdb.selected_inferior().pid}/maps"):
        words = line.split(maxsplit=5)
        if len(words) < 6 or not words[5].startswith("/"):
            continue
        start, end = (int(part, 16) for part in words[0].split("-"))
        path = words[5].strip()
        found.append((start, end, path, bases.setdefault(path, start)))
    return found


def stack() -> list[tuple[str, int]]:
    frames = []
    mapped = modules()
    frame = gdb.newest_frame().older()
    while frame is not None and frame.is_valid():
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            pc = frame.pc()
            for start, end, path, base in mapped:
                if start <= pc < end:
                    frames.append((os.path.basename(path), pc - base))
                    break
            else:
                frames.append(("", pc))
        frame = frame.older()
    return frames


class Call(gdb.Breakpoint):  # type: ignore[misc]
    """Notes the stack and goes on."""

    def __init__(self, function: str) -> None:
        super().__init__(f"*{function}", internal=True)
        self.function = function

    def stop(self) -> bool:
        type_name = gdb.parse_and_eval("(char *) $rdi").string() if self.function == "rte_malloc" else None
        output.write(json.dumps({"function": self.function, "type": type_name, "frames": stack()}) + "\n")
        return False


gdb.Breakpoint("chains_begin", internal=True)
gdb.execute("run > /dev/null 2>&1", to_string=True)
calls = [Call("rte_malloc"), Call("rte_free")]
gdb.execute("handle SIGUSR1 nostop noprint pass", to_string=True)
gdb.execute("continue", to_string=True)
output.close()
