"""The agent as the host sees it: loads it into a Frida session, and calls it with a time limit."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import frida

from frida_rtetrack.errors import AgentFailed, AgentTimeout, TargetEnded
from frida_rtetrack.target.descriptors import closing_socket
from frida_rtetrack.target.engine import agent_script

CALL_SECONDS = 20.0
MOST_TIMES = 10
LOOK_SECONDS = 0.25
SESSION_OPTIONS: dict[str, Any] = {"exit_monitor": False}
"""For every attach. Frida's exit monitor makes forked children spin in _exit for ever (native/exits.c does what it was
good for). Not `exceptor: "off"`: Frida's own guarded reads would crash the program (see native/faults.c)."""


class GivenUp(AgentTimeout):
    """Nobody waits any more for a call that goes on."""


class AgentLink:
    """A loaded agent. Every call raises AgentTimeout, AgentFailed or TargetEnded instead of hanging or dying."""

    def __init__(
        self,
        session: frida.Session,
        on_message: Callable[[dict[str, Any]], None],
        late: Callable[[Any | None], None] = lambda result: None,
    ) -> None:
        """Loads agent.js into `session`; what it sends goes to `on_message`, on a thread of Frida's.

        Raises GivenUp; the session must not be detached then before `late` is called: the program would crash.
        """
        self._on_message = on_message

        def unload(script: Any | None) -> None:
            try:
                if script is not None:
                    script.unload()
            finally:
                late(None)

        self._script = limited(lambda: session.create_script(agent_script(), name="rtetrack"), late=unload)
        self._on_script_message = self._receive  # one object: `off` finds it again
        self._script.on("message", self._on_script_message)
        limited(self._script.load, late=late)

    def _receive(self, message: Any, data: Any) -> None:
        if message["type"] == "send" and isinstance(message["payload"], dict):
            self._on_message(message["payload"])
        elif message["type"] == "error":
            self._on_message({"type": "error", "text": message.get("stack") or message["description"]})

    def call(
        self,
        method: str,
        *arguments: Any,
        seconds: float = CALL_SECONDS,
        working: Callable[[], object] = lambda: None,
    ) -> Any:
        """Calls the agent's exported `method` (its name in snake_case). Bytes as the last argument go as they are.

        `working()` changes while the agent has something to do.
        """
        return limited(lambda: getattr(self._script.exports_sync, method)(*arguments), seconds, working=working)

    def unload(self, seconds: float) -> None:
        """Makes the agent undo everything and leave."""
        limited(self._script.unload, seconds)

    def stay(self, seconds: float) -> None:
        """Has Frida's agent, which does nothing any more, stay in the process when its session ends."""
        limited(self._script.eternalize, seconds)

    def close(self) -> None:
        """Hears no more of what the script sends."""
        self._script.off("message", self._on_script_message)


def hang_up(pid: int) -> None:
    """Ends the connection that the agent in `pid` has to Frida in this process: it leaves by itself then.

    For one that Frida forgot to tell to leave: on a busy machine one in some thirty stayed after `detach` (docs/frida-notes.md).
    """
    for name in os.listdir("/proc/self/fd"):
        try:
            with closing_socket(os.dup(int(name))) as found:
                if found and found.family == socket.AF_UNIX and _peer(found) == pid and _is_fridas(found):
                    found.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not connected, or closed meanwhile


def _is_fridas(found: socket.socket) -> bool:
    """Whether Frida made the connection: this process may have others to the program, to its telemetry for example.

    An agent connects by a name (frida-core, lib/payload: an abstract socket), or has one end of a socket pair, which has none.
    """
    name = found.getsockname()
    return name.startswith(b"\0/frida-") if isinstance(name, bytes) else name == found.getpeername() == ""


def _peer(found: socket.socket) -> int:
    """struct ucred, unix(7)."""
    return int(struct.unpack("iII", found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def limited(
    call: Callable[[], Any],
    seconds: float = CALL_SECONDS,
    *,
    working: Callable[[], object] = lambda: None,
    late: Callable[[Any | None], None] = lambda result: None,
) -> Any:
    """Runs `call` with a time limit (Frida has none of its own) and returns its result. Raises GivenUp, and as AgentLink.

    `seconds` are those of an idle machine: where more wants to run than there are processors, each takes longer. The
    limit begins anew whenever `working()` has another value, MOST_TIMES times at the most. What `call` returns when
    nobody waits for it any more is handed to `late`, on another thread; None where it failed.
    """
    outcome: list[Any] = []
    lock = threading.Lock()
    given_up = False

    def run() -> None:
        try:
            came: tuple[Any, BaseException | None] = call(), None
        except BaseException as error:  # handed to the caller below
            came = None, error
        with lock:
            outcome.append(came)
            nobody_waits = given_up
        if nobody_waits:
            late(came[0])

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    _wait_for(thread, seconds * _crowd(), working)
    with lock:
        given_up = not outcome
    if given_up:
        raise GivenUp(f"The agent did not answer within {seconds * _crowd():.0f} seconds.")
    result, error = outcome[0]
    if error is None:
        return result
    raise _as_ours(error) from error


def _wait_for(thread: threading.Thread, seconds: float, working: Callable[[], object]) -> None:
    begun = since = time.monotonic()
    seen = working()
    while thread.is_alive() and time.monotonic() - since < seconds:
        thread.join(min(LOOK_SECONDS, seconds))
        if time.monotonic() - begun < MOST_TIMES * seconds and (now := working()) != seen:
            seen, since = now, time.monotonic()


def _crowd() -> float:
    """How many want each processor, at least one."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


_ATTACHING = (frida.ProcessNotRespondingError, frida.PermissionDeniedError)
"""Whoever attaches knows better what these mean."""


def _as_ours(error: BaseException) -> BaseException:
    """What Frida calls `error`, as a user of ours may meet it."""
    if isinstance(error, frida.TimedOutError):
        return AgentTimeout(f"Frida waited in vain: {error}.")
    if isinstance(
        error, (frida.InvalidOperationError, frida.TransportError, frida.ProtocolError, frida.ProcessNotFoundError)
    ):
        return TargetEnded(f"The process is gone ({error}).")
    if isinstance(error, (frida.RPCException, frida.NotSupportedError)):
        return AgentFailed(f"The agent failed: {str(error).partition(chr(10))[0]}.")
    if type(error).__module__.startswith(("frida", "_frida")) and not isinstance(error, _ATTACHING):
        return AgentFailed(f"Frida failed: {error}.")
    return error
