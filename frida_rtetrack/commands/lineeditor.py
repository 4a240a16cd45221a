"""The line that is typed at the prompt: edited, completed, remembered. A module of its own since it takes a tenth of a
second to load, and most runs have no prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import NestedCompleter, PathCompleter
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.patch_stdout import patch_stdout

HISTORY = Path("~/.rtetrack_frida_history")

__all__ = ["line_editor", "patch_stdout"]


def line_editor(
    message: Callable[[], str],
    words: Mapping[str, Iterable[str]],
    paths_after: Iterable[str],
    on_interrupt: type[Exception],
) -> PromptSession[str]:
    """Reads lines behind `message()`. `words`: what completes a line, and what may follow it; behind those in
    `paths_after` a path may; `on_interrupt`: what Ctrl-C raises."""
    completer = NestedCompleter.from_nested_dict({word: set(more) or None for word, more in words.items()})
    for word in paths_after:
        completer.options[word] = PathCompleter(expanduser=True)
    return PromptSession(
        message,
        history=_history(),
        completer=completer,
        complete_while_typing=False,
        interrupt_exception=on_interrupt,  # a KeyboardInterrupt would end the event loop
    )


def _history() -> FileHistory | InMemoryHistory:
    path = HISTORY.expanduser()
    try:
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
