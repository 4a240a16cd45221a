"""Every error a user can meet. Each is one sentence of what happened; its HINT says what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator


class RtetrackError(Exception):
    """Base class: `str(error)` is what happened, `error.hint` what to do about it."""

    HINT = ""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = self.HINT if hint is None else hint


class NoSuchProgram(RtetrackError):
    """The program to spawn does not exist or cannot be run."""

    HINT = "Give the path of an executable, or a name that is found in PATH."


class NoSuchProcess(RtetrackError):
    """There is no process with this pid or name."""

    HINT = "List the processes with `ps -e` and give a pid or an exact process name."


class AmbiguousName(RtetrackError):
    """More than one process has this name."""

    HINT = "Give the pid of one of them."


class NotPermitted(RtetrackError):
    """The kernel does not let this user trace that process."""


class WrongMachine(RtetrackError):
    """The program is built for another machine."""

    HINT = "Run rtetrack-frida on the machine that the program is built for."


class StaticProgram(RtetrackError):
    """The program is fully static: there is no dynamic loader that could take the agent in."""

    HINT = "Link it as a dynamic executable (DPDK itself may be linked statically into it)."


class NoDpdk(RtetrackError):
    """The process has no module that defines DPDK's allocation functions."""


class LibraryNotFound(RtetrackError):
    """`--lib` names no module of the process."""


class AlreadyTracked(RtetrackError):
    """Another rtetrack-frida tracks this process."""

    HINT = "Leave the other one first (`quit` at its prompt, or Ctrl-C)."


class TargetEnded(RtetrackError):
    """The process ended before or while it was being tracked."""

    HINT = "Start it again, with `rtetrack-frida spawn` to see it from its first instruction."


class AgentFailed(RtetrackError):
    """The agent could not do its work in the target."""

    HINT = "Please report this with the program, Frida's version and the kernel's."


class AgentTimeout(RtetrackError):
    """The agent did not answer in time."""

    HINT = "Is the process stopped (state T in `ps`)? Let it run with `kill -CONT PID` and try again."


class NoSafeMoment(RtetrackError):
    """The program's threads stood at no safe place to come in; nothing was tried."""

    HINT = "Attach at a calmer moment (not while it loads libraries or forks without pause), or use `rtetrack-frida spawn`."


class AgentStays(RtetrackError):
    """Frida's agent was left in the program, since taking it out then could have deadlocked that."""

    HINT = "It does nothing, takes some 12 MiB and 7 threads, and goes with the program. The process can be attached to again."


class ArrivalRefused(RtetrackError):
    """The program, or the kernel on its behalf, does not let us come in; nothing was tried, or it was taken back."""

    HINT = "Is it under seccomp, or stopped? `grep -E 'Seccomp|State' /proc/PID/status` tells. `rtetrack-frida spawn` may do."


class OutOfResources(RtetrackError):
    """The machine, or a limit of this process's, has no more memory, descriptors or threads to give."""

    HINT = "`ulimit -a` shows the limits that rtetrack-frida is started under (-n: descriptors, -v: memory, -u: processes)."


_RAN_OUT = {errno.EMFILE: "file descriptors", errno.ENFILE: "file descriptors", errno.ENOMEM: "memory", errno.EAGAIN: "processes or threads"}  # fmt: skip


@contextlib.contextmanager
def naming_what_ran_out() -> Iterator[None]:
    """Has what runs out of resources end in OutOfResources, wherever it does. A decorator, too."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        what = "memory" if isinstance(error, MemoryError) else _RAN_OUT.get(getattr(error, "errno", None) or 0)
        what = what or ("threads" if "can't start new thread" in str(error) else None)
        if what is None:
            raise
        raise OutOfResources(f"rtetrack-frida ran out of {what}.") from error
    except Exception as error:  # Frida's own classes, and ours that quote them
        if (what := _of_message(str(error))) is None:
            raise
        raise OutOfResources(f"rtetrack-frida ran out of {what}.") from error


def _of_message(text: str) -> str | None:
    """What Frida ran out of, which tells it in words only."""
    return next((what for number, what in _RAN_OUT.items() if os.strerror(number) in text), None)


class NotLive(RtetrackError):
    """What was asked for needs the target, and it has ended or was detached."""

    HINT = "Only what was recorded can still be asked for: dump, stats, top, show, bad."


class BadUsage(RtetrackError):
    """An option or a command makes no sense."""


class NoRecording(RtetrackError):
    """A file that is no recording, or one of a newer format."""

    HINT = "Make one with `rtetrack-frida spawn -o FILE PROGRAM` or `rtetrack-frida attach -o FILE PID`."


class DamagedRecording(RtetrackError):
    """A recording, or a part of it, that cannot be read."""


class NotRecorded(RtetrackError):
    """A recording does not have what a report needs."""

    HINT = "A recording that was made without --aggregate has every event, and can tell."
