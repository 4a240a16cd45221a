"""What can be told about a process or a program before it is touched: does it exist, may we trace it, can it be traced."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from frida_rtetrack.errors import (
    AlreadyTracked,
    AmbiguousName,
    ArrivalRefused,
    BadUsage,
    NoSuchProcess,
    NoSuchProgram,
    NotPermitted,
    StaticProgram,
    WrongMachine,
)

SESSION_NAME = "rtetrack-session"
"""The name of the memfd: seen in the target's /proc/PID/maps while it is tracked."""

_AGENT = "/memfd:frida-agent"
_ELF_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64", 21: "ppc64", 258: "loongarch64"}
TRACER_PATIENCE_S = 1.0
LEAVING_SECONDS = 5.0
"""In which the agent of a host that was killed has left."""
MOST_DIGITS = 20
"""More than a pid has; Python makes no number of 5,000."""
_PT_INTERP = 3
_PT_DYNAMIC = 2


def argument_list(argv: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """The argument list as the kernel takes it. Raises BadUsage."""
    try:
        words = tuple(os.fspath(word) for word in argv)
        if not isinstance(argv, str) and all(isinstance(word, str) and "\0" not in word for word in words):
            return words
    except TypeError:
        pass
    raise BadUsage("The program and its arguments are not a list of texts.", 'For example: ["./app", "-m", "512"].')


def find_program(name: str) -> str:
    """The path of the program that `name` means to a shell. Raises NoSuchProgram, and as `check_executable`."""
    path = shutil.which(name)
    if path is not None:
        check_executable(os.path.realpath(path), name)
        return path
    if os.path.isdir(name):
        raise NoSuchProgram(f"{name} is a directory, not a program.")
    if os.path.exists(name) and os.access(name, os.X_OK):  # a shell would not look here either
        raise NoSuchProgram(f"{name} is not in PATH.", f"For the one in this folder give ./{name}.")
    if os.path.exists(name):
        raise NoSuchProgram(f"{name} is not executable.", f"Make it executable with `chmod +x {name}`.")
    raise NoSuchProgram(f"There is no program {name}.")


def check_executable(path: str, shown_as: str) -> None:
    """Raises WrongMachine or StaticProgram where the ELF file at `path` cannot be tracked. Scripts pass."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if head[:4] != b"\x7fELF":
                return
            if len(head) < 64:
                raise NoSuchProgram(f"{shown_as} is a damaged program file.", "Build or copy it again.")
            little = head[5] != 2
            order = "little" if little else "big"
            wide = head[4] == 2

            def field(data: bytes, at: int, size: int) -> int:
                return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

            machine = _ELF_MACHINES.get(field(head, 18, 2), f"machine {field(head, 18, 2)}")
            here = platform.machine()
            if machine != here or not wide:
                raise WrongMachine(
                    f"{shown_as} is a program for {machine}{'' if wide else ' (32 bits)'}, this is {here}."
                )
            entry_bytes, entries = field(head, 54, 2), field(head, 56, 2)
            file.seek(field(head, 32, 8))
            table = file.read(entry_bytes * entries)
            kinds = {field(table, entry_bytes * i, 4) for i in range(entries)}
            if _PT_INTERP not in kinds:
                raise StaticProgram(
                    f"{shown_as} is fully static (it has no dynamic loader): no agent can be loaded into it."
                )
    except OSError as error:
        raise NoSuchProgram(f"{shown_as} cannot be read: {error.strerror}.", "Check its permissions.") from None


def process_name(pid: int) -> str:
    """The process's name as `ps -e` shows it, empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def command_line(pid: int) -> list[str]:
    """The process's argument list, empty where it cannot be read."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in raw.split(b"\0")[:-1]]


def find_processes(target: int | str | Sequence[int | str]) -> list[int]:
    """The pids that `target` means, one or several that share a heap. Raises BadUsage, and as `find_process`."""
    names = [target] if isinstance(target, int | str) else target
    if not isinstance(names, Sequence) or isinstance(names, bytes) or not names:
        raise BadUsage("No process was named to attach to.")
    for name in names:
        if not isinstance(name, int | str) or isinstance(name, bool):
            raise BadUsage(f"{name!r} is no process.", "It is a pid, or a name.")
    pids = [find_process(str(name)) for name in names]
    check_one_heap(pids)
    return pids


def find_process(target: str) -> int:
    """The pid that `target`, a pid or a process name, means. Raises NoSuchProcess or AmbiguousName."""
    if target.isdecimal() and len(target) <= MOST_DIGITS:
        pid = int(target)
        if not os.path.isdir(f"/proc/{pid}"):
            raise NoSuchProcess(f"There is no process {pid}.")
        return pid
    found = [
        pid
        for pid in sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal())
        if pid != os.getpid() and _has_name(pid, target)
    ]
    if not found:
        raise NoSuchProcess(f"There is no process named {target}.")
    if len(found) > 1:
        listing = "; ".join(f"{pid}: {' '.join(command_line(pid))[:80]}" for pid in found)
        raise AmbiguousName(f"{len(found)} processes are named {target} ({listing}).")
    return found[0]


def _has_name(pid: int, name: str) -> bool:
    arguments = command_line(pid)
    return (
        process_name(pid) == name[:15]
        and (len(name) <= 15 or (bool(arguments) and os.path.basename(arguments[0]) == name))
    ) or (bool(arguments) and os.path.basename(arguments[0]) == name)


def check_attachable(pid: int) -> None:
    """Raises what stands in the way of attaching to `pid`, as far as /proc tells before anything is touched."""
    status = _status(pid)
    if pid == os.getpid():
        raise BadUsage("rtetrack-frida cannot track itself.", "Give another process.")
    if status.get("Kthread") == "1" or (status.get("State", "Z")[0] != "Z" and "VmSize" not in status):
        raise NoSuchProcess(f"Process {pid} ({process_name(pid)}) is a thread of the kernel.", "Give a program's pid.")
    if status.get("State", "").startswith("Z"):
        if len(os.listdir(f"/proc/{pid}/task")) > 1:
            raise ArrivalRefused(
                f"The main thread of process {pid} has ended (pthread_exit): /proc shows nothing of the others' memory.",
                "Start it with `rtetrack-frida spawn`.",
            )
        raise NoSuchProcess(f"Process {pid} has ended (it is a zombie).", "Attach to one that is running.")
    if status.get("State", "").startswith("T"):
        raise ArrivalRefused(f"Process {pid} is stopped.", f"Let it run with `kill -CONT {pid}` and try again.")
    if status.get("Seccomp") == "1":
        raise ArrivalRefused(f"Process {pid} is under strict seccomp: it may do nothing but read and write.", "")
    tracer = _lasting_tracer(pid)
    if tracer:
        raise NotPermitted(
            f"Process {pid} is being traced by process {tracer} ({process_name(tracer)}).",
            "A process can have one tracer at a time: let the other one (gdb, strace) go first.",
        )
    _check_namespaces(pid)
    owner = int(status.get("Uid", "0").split()[0])
    if os.geteuid() not in (0, owner):
        raise NotPermitted(
            f"Process {pid} belongs to another user (uid {owner}).", "Run rtetrack-frida as that user or as root."
        )
    try:
        open(f"/proc/{pid}/maps").close()
    except PermissionError:
        raise not_permitted(pid) from None
    except OSError:
        raise NoSuchProcess(f"There is no process {pid}.") from None
    if _is_tracked(pid):
        raise AlreadyTracked(f"Process {pid} is already being tracked by another rtetrack-frida.")
    check_executable(f"/proc/{pid}/exe", f"Process {pid} ({process_name(pid)})")


def _check_namespaces(pid: int) -> None:
    """Raises ArrivalRefused where the process counts threads otherwise, or has another network: one in a container."""
    for name, what in (("pid", "numbers of its own for processes (PID namespace)"), ("net", "a network of its own")):
        try:
            same = os.readlink(f"/proc/{pid}/ns/{name}") == os.readlink(f"/proc/self/ns/{name}")
        except OSError:
            continue  # not ours to see: what follows says so
        if not same:
            raise ArrivalRefused(
                f"Process {pid} is in a container: it has {what}.",
                f"Run rtetrack-frida in there: `docker exec`, `kubectl exec` or `nsenter -t {pid} -m -p -n` brings it in.",
            )


def _lasting_tracer(pid: int) -> int:
    """The pid of the process that traces `pid`, 0 for none. Ours (Frida still letting go) and passing ones do not count."""
    deadline = time.monotonic() + TRACER_PATIENCE_S
    while (tracer := int(_status(pid).get("TracerPid", "0"))) not in (0, os.getpid()):
        if time.monotonic() > deadline:
            return tracer
        time.sleep(0.05)
    return 0


def not_permitted(pid: int) -> NotPermitted:
    """Why the kernel refuses to let us trace `pid`, with what to do about it."""
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    level = scope.read_text().strip() if scope.exists() else "0"
    message = f"The kernel does not permit to trace process {pid}"
    if level == "3":
        return NotPermitted(f"{message}: kernel.yama.ptrace_scope is 3.", "It can only be lowered by a reboot.")
    if os.geteuid() != 0 and level != "0":
        return NotPermitted(
            f"{message}: kernel.yama.ptrace_scope is {level}.",
            "Run as root, or `sudo sysctl kernel.yama.ptrace_scope=0`, or start the program with `rtetrack-frida spawn`.",
        )
    if os.geteuid() == 0:
        return NotPermitted(
            f"{message}.", "In a container, start it with `--cap-add=SYS_PTRACE`, or run rtetrack-frida on the host."
        )
    return NotPermitted(f"{message}.", "Run rtetrack-frida as root, or as the user that the process belongs to.")


def state(pid: int) -> str:
    """The letter that `ps` shows: R, S, D, T, Z and so on. Raises NoSuchProcess."""
    return _status(pid).get("State", "?")[:1]


def is_ending(pid: int) -> bool:
    """Whether the process is gone, or is about to be: SIGKILL was sent to it, or its memory has been given back."""
    try:
        status = _status(pid)
    except NoSuchProcess:
        return True
    pending = int(status.get("SigPnd", "0"), 16) | int(status.get("ShdPnd", "0"), 16)
    return bool(pending >> (signal.SIGKILL - 1) & 1) or "VmSize" not in status


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        raise NoSuchProcess(f"There is no process {pid}.") from None
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def thread_exists(pid: int, tid: int) -> bool:
    """Whether thread `tid` of process `pid` is there and not dead."""
    try:
        stat = Path(f"/proc/{pid}/task/{tid}/stat").read_bytes()
    except OSError:
        return False
    return stat[stat.rindex(b")") + 2 : stat.rindex(b")") + 3] not in (b"Z", b"X", b"")


def cpu_ticks(pid: int, name: str) -> int:
    """What the threads of process `pid` with this name have run, in clock ticks."""
    ticks = 0
    for task in _tasks(pid):
        try:
            stat = Path(f"/proc/{pid}/task/{task}/stat").read_text(errors="replace")
        except OSError:
            continue
        start, end = stat.index("("), stat.rindex(")")
        if stat[start + 1 : end] == name:
            ticks += sum(map(int, stat[end + 2 :].split()[11:13]))  # utime, stime: proc(5)
    return ticks


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def thread_name(pid: int, tid: int) -> str | None:
    """The name that thread `tid` has now, None where it is gone."""
    try:
        return Path(f"/proc/{pid}/task/{tid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return None


_CONFIG = re.compile(r"\S+/dpdk/[^/\s]+/config$", re.MULTILINE)


def agents(pid: int) -> frozenset[str]:
    """The address ranges at which agents of Frida are mapped in `pid`; none where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.split()[0] for line in lines if _AGENT in line)


def wait_for_agents_end(pid: int, seconds: float, but: frozenset[str] = frozenset()) -> bool:
    """Waits until no agent of Frida is mapped in `pid` any more `but` those, or it is gone; False: not within `seconds`.

    Frida lets go before its agent has unloaded itself. A thread of the program that ends in that very moment, and has
    run JavaScript before, may crash in it: who tells the program to end should not do so earlier.
    """
    deadline = time.monotonic() + seconds
    while agents(pid) - but:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def maps_session(pid: int) -> bool:
    """Whether the process has a session memory mapped, as a tracked one does."""
    try:
        return f"/memfd:{SESSION_NAME}" in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return False


def _is_tracked(pid: int) -> bool:
    """Whether the process has an agent of ours, of a host that lives. The agent of one that was killed leaves, and is waited for."""
    first, deadline = _heartbeat(pid), time.monotonic() + LEAVING_SECONDS
    while maps_session(pid) and agents(pid):  # a host has the first mapped, too
        now = _heartbeat(pid)
        if (now and now != first) or time.monotonic() > deadline:
            return True
        time.sleep(0.02)
    return False


def _heartbeat(pid: int) -> bytes:
    """When the host of a process that is tracked last gave a sign of life, as it stands in the session memory; empty where that is gone."""
    from frida_rtetrack.stream.events import HEADER_DTYPE  # numpy

    assert HEADER_DTYPE.fields is not None
    offset = HEADER_DTYPE.fields["heartbeat_ns"][1]
    try:
        with open(f"/proc/{pid}/maps", errors="replace") as maps:
            beginning = next(
                line for line in maps if f"/memfd:{SESSION_NAME}" in line and line.split()[2] == "00000000"
            )
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(int(beginning.split("-")[0], 16) + offset)
            return memory.read(8)
    except (OSError, StopIteration):
        return b""


def lives_without_session(pid: int) -> bool:
    """Whether the process lives on and has no session memory mapped: a tracked one has executed another program.

    One that ends has given its memory back some time before it is gone; a long time, if that was large.
    """
    return not (maps_session(pid) or is_ending(pid))  # in this order: one that ends meanwhile is ending


def heap_identity(pid: int) -> str | None:
    """What tells one DPDK heap from another: the shared configuration file that the process has mapped, or None."""
    try:
        found = _CONFIG.search(Path(f"/proc/{pid}/maps").read_text(errors="replace"))
    except OSError:
        return None
    return found[0] if found else None


def check_one_heap(pids: Sequence[int]) -> None:
    """Raises BadUsage where the processes do not share one DPDK heap."""
    if len(pids) < 2:
        return
    if len(set(pids)) < len(pids):
        raise BadUsage("A process was named twice.", "Name each process once.")
    heaps = {pid: heap_identity(pid) for pid in pids}
    if len(set(heaps.values())) > 1 or None in heaps.values():
        listing = "; ".join(f"{pid}: {heap or 'none that is shared'}" for pid, heap in heaps.items())
        raise BadUsage(f"These processes do not share one DPDK heap ({listing}).", "Run one rtetrack-frida for each.")


def sharing_the_heap(pids: Sequence[int]) -> tuple[int, ...]:
    """The other processes that share the DPDK heap of `pids`."""
    heaps = {heap for heap in map(heap_identity, pids) if heap is not None}
    if not heaps:
        return ()
    others = sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal() and int(entry) not in pids)
    return tuple(pid for pid in others if heap_identity(pid) in heaps)
