"""The agent as the host sees it: loads it into a Frida session, and calls it with a time limit."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import frida

from frida_rtetrack.errors import AgentFailed, AgentTimeout, TargetEnded
from frida_rtetrack.target.engine import agent_script

CALL_SECONDS = 20.0
SESSION_OPTIONS: dict[str, Any] = {"exit_monitor": False}
"""For every attach. Frida's exit monitor makes forked children spin in _exit for ever (native/exits.c does what it was
good for). Not `exceptor: "off"`: Frida's own guarded reads would crash the program (see native/faults.c)."""


class AgentLink:
    """A loaded agent. Every call raises AgentTimeout, AgentFailed or TargetEnded instead of hanging or dying."""

    def __init__(self, session: frida.Session, on_message: Callable[[dict[str, Any]], None]) -> None:
        """Loads agent.js into `session`; what it sends goes to `on_message`, on a thread of Frida's."""
        self._on_message = on_message
        self._script = limited(lambda: session.create_script(agent_script(), name="rtetrack"))
        self._on_script_message = self._receive  # one object: `off` finds it again
        self._script.on("message", self._on_script_message)
        limited(self._script.load)

    def _receive(self, message: Any, data: Any) -> None:
        if message["type"] == "send" and isinstance(message["payload"], dict):
            self._on_message(message["payload"])
        elif message["type"] == "error":
            self._on_message({"type": "error", "text": message.get("stack") or message["description"]})

    def call(self, method: str, *arguments: Any, seconds: float = CALL_SECONDS) -> Any:
        """Calls the agent's exported `method` (its name in snake_case). Bytes as the last argument go as they are."""
        return limited(lambda: getattr(self._script.exports_sync, method)(*arguments), seconds)

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
            with socket.socket(fileno=os.dup(int(name))) as found:
                if found.family == socket.AF_UNIX and _peer(found) == pid:
                    found.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # no socket, or not connected


def _peer(found: socket.socket) -> int:
    """struct ucred, unix(7)."""
    return int(struct.unpack("iII", found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def limited(call: Callable[[], Any], seconds: float = CALL_SECONDS) -> Any:
    """Runs `call`, for at most `seconds` (Frida has no time limit of its own), and returns its result."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:  # handed to the caller below
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise AgentTimeout(f"The agent did not answer within {seconds:.0f} seconds.")
    result, error = outcome[0]
    if error is None:
        return result
    if isinstance(error, frida.TimedOutError):
        raise AgentTimeout(f"Frida waited in vain: {error}.") from error
    if isinstance(
        error, (frida.InvalidOperationError, frida.TransportError, frida.ProtocolError, frida.ProcessNotFoundError)
    ):
        raise TargetEnded(f"The process is gone ({error}).") from error
    if isinstance(error, (frida.RPCException, frida.NotSupportedError)):
        raise AgentFailed(f"The agent failed: {error}") from error
    raise error
