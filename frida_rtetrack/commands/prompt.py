"""The interactive prompt: reads commands, asks the host, prints the answers. No logic of its own."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from frida_rtetrack.errors import BadUsage, NotLive, RtetrackError
from frida_rtetrack.reporters import recorded, text
from frida_rtetrack.reporters.colour import painted
from frida_rtetrack.reports.leaks import Suppression
from frida_rtetrack.symbols.visible import visible
from frida_rtetrack.tracking.map import Block, Freed

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from frida_rtetrack.commands.terminal import ProgramTerminal
    from frida_rtetrack.host import Host
    from frida_rtetrack.reporters.console import ConsoleReporter

ORDERS = ("bytes", "blocks", "oldest")
MOST_WORDS = {
    "dump": 1,
    "top": 2,
    "show": 1,
    "bad": 1,
    "refs": 1,
    "leaks": 1,
    "record": 1,
    "send": 1,
}
"""How many words a command takes at the most. Others take none."""
VERBATIM = ("send",)
"""Commands whose one word is the rest of the line as it was typed, quotes and all."""


COMMANDS = (
    *("dump", "stats", "top", "show", "bad", "refs", "leaks", "verify", "record"),
    *("pause", "resume", "detach", "kill", "send", "quit", "help"),
)
"""Each is a method of Prompt, `_dump` and so on, whose docstring is its usage and what it does."""


class _Interrupted(Exception):
    """Ctrl-C at the prompt."""


def usages() -> list[str]:
    """A line for each command: how it is typed, and what it does."""
    return [str(getattr(Prompt, f"_{name}").__doc__) for name in COMMANDS]


class Prompt:
    """The prompt of one host. `run` returns when the user leaves or the tracking is over."""

    def __init__(
        self,
        host: Host,
        reporter: ConsoleReporter,
        terminal: ProgramTerminal | None,
        *,
        spawned: bool,
        on_interrupt: Callable[[], None],
        suppressions: Sequence[Suppression] = (),
    ) -> None:
        """`terminal`: the spawned program's, to type into; `on_interrupt`: what Ctrl-C does; `suppressions`: of `leaks`."""
        self._suppressions = suppressions
        self._host = host
        self._reporter = reporter
        self._terminal = terminal
        self._spawned = spawned
        self._leaving = False
        self._on_interrupt = on_interrupt
        self._screen = sys.stdout  # as it is without patch_stdout
        self._commands: dict[str, Callable[[list[str]], Iterator[str]]] = {
            name: getattr(self, f"_{name}") for name in COMMANDS
        }

    def run(self, duration: float | None) -> None:
        """Reads commands until the user leaves, the target ends or `duration` seconds have passed."""
        from frida_rtetrack.commands import lineeditor

        words = {**{name: () for name in self._commands}, "top": ORDERS}
        session = lineeditor.line_editor(
            self._message, words, paths_after=("dump", "record"), on_interrupt=_Interrupted
        )
        if self._terminal is not None:
            terminal = self._terminal
            session.app.before_render += lambda app: terminal.match_size()
            terminal.on_unfinished = session.app.invalidate
        with lineeditor.patch_stdout(raw=True):
            asyncio.run(self._read_commands(session, duration))

    def _message(self) -> str:
        """The prompt, below the line that the program has begun and not finished: its own prompt, for example."""
        unfinished = "" if self._terminal is None else self._terminal.unfinished
        if not unfinished:
            return "rtetrack> "
        columns = shutil.get_terminal_size().columns
        return f"{visible(unfinished)[-(columns - 1) :]}\nrtetrack> "

    async def _read_commands(self, session: PromptSession[str], duration: float | None) -> None:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def watch() -> None:
            self._host.wait(duration)
            with contextlib.suppress(RuntimeError):  # the prompt was left meanwhile, and its loop is closed
                loop.call_soon_threadsafe(over.set)

        threading.Thread(target=watch, daemon=True).start()
        ended = asyncio.ensure_future(over.wait())
        while not self._leaving and not ended.done():
            line = asyncio.ensure_future(session.prompt_async(handle_sigint=False))
            await asyncio.wait({line, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not line.done():
                line.cancel()
                await asyncio.wait({line})
                break
            try:
                await loop.run_in_executor(None, self.execute, line.result())
            except _Interrupted:
                self._interrupt()
            except EOFError:
                await loop.run_in_executor(None, self.execute, "quit")
        ended.cancel()

    def execute(self, line: str) -> None:
        """Carries out one command and prints its answer."""
        verbatim = line.strip().partition(" ")
        try:
            words = [verbatim[0], verbatim[2]] if verbatim[0] in VERBATIM else shlex.split(line)
        except ValueError as error:
            self._print(f"{error}: quotes must come in pairs.")
            return
        if not words:
            return
        command = self._commands.get(words[0])
        if command is None:
            self._print(f"There is no command {words[0]}. `help` lists them.")
            return
        try:
            self._check_count(words)
            for answer in command(words[1:]):
                self._print(answer)
        except RtetrackError as error:
            self._print(f"{error} {error.hint}".rstrip())
        except Exception as error:  # a bug of ours must not end the session
            self._print(f"{words[0]} failed: {error!r}. Please report this.")

    def _check_count(self, words: list[str]) -> None:
        """What is too much may be meant otherwise: `kill me now` kills nothing."""
        most = MOST_WORDS.get(words[0], 0)
        if len(words) - 1 > most:
            usage = str(self._commands[words[0]].__doc__).split("  ")[0]
            raise BadUsage(f"{words[0]} does not take {' '.join(words[1:])}.", f"It is: {usage}")

    def _print(self, line: str) -> None:
        """Prints while no prompt is shown: straight to the terminal, so that it is there before the next prompt is."""
        self._screen.write(painted([line], self._screen))
        self._screen.flush()

    def _interrupt(self) -> None:
        """Ctrl-C: leaves an attached program; goes to a spawned one, and the second time kills it."""
        if self._spawned:
            self._print("Ctrl-C goes to the program (SIGINT); a second one kills it.")
        else:
            self._leaving = True
        self._on_interrupt()

    # ---- the commands ----

    def _dump(self, words: list[str]) -> Iterator[str]:
        """dump [FILE]            write the live allocations (default: --dump-file)"""
        path, blocks = self._host.dump(Path(words[0]).expanduser() if words else None)
        yield f"{text.count(blocks, 'live allocation')} written to {path}"

    def _stats(self, words: list[str]) -> Iterator[str]:
        """stats                  figures: live, peak, totals, rates, by type and socket, lost, bad frees; how free memory is cut up"""
        yield from text.stats(self._host.stats())
        with contextlib.suppress(NotLive):
            yield "DPDK's free memory"
            yield from recorded.heaps(self._host.free_space())
        for space in self._host.free_space_at_failures[-1:]:
            yield f"when an allocation of {text.size(space.failed_bytes or 0)} had failed last"
            yield from recorded.heaps(space)

    def _top(self, words: list[str]) -> Iterator[str]:
        """top [N] [bytes|blocks|oldest]   the N largest (or oldest) call sites of what is live (10 by bytes)"""
        number, order = 10, "bytes"
        for word in words:
            if word in ORDERS:
                order = word
            else:
                number = _number(word, "top takes a number and one of bytes, blocks, oldest.")
        sites = self._host.top(number, order)
        if not sites:
            yield "Nothing is live."
        for site in sites:
            yield from text.call_site(site)

    def _show(self, words: list[str]) -> Iterator[str]:
        """show ADDRESS           what is known of an address: live, freed, or inside which block; with its stacks"""
        yield from self._described(_address("show", words))

    def _described(self, address: int) -> Iterator[str]:
        found = self._host.find(address)
        if found.block is not None:
            inside = f"lies {found.offset} bytes inside of" if found.offset else "is"
            yield f"{address:#x} {inside} a live block of {text.size(found.block.size_bytes)}"
            yield from self._block(found.block)
        elif found.freed is not None:
            yield f"{address:#x} was freed."
            if found.freed.block is not None:
                yield from self._block(found.freed.block)
            yield from self._freed(found.freed.freed)
        else:
            yield f"Nothing is known of {address:#x}: no block was seen there."
        for tenancy in found.earlier:
            names = self._host.names
            yield f"  before that: a block of type {names.label_text(tenancy.label)}, allocated"
            yield from text.stack(names.stack(tenancy.stack))
            yield "  and freed"
            yield from text.stack(names.stack(tenancy.free_stack))

    def _block(self, block: Block) -> Iterator[str]:
        names = self._host.names
        label = names.label_text(block.label, baseline=block.baseline)
        if block.baseline:
            yield f"  {text.size(block.size_bytes)}, there before the tracking began"
            return
        yield f"  allocated: {text.size(block.size_bytes)} of type {label} by {names.thread(block.thread)}"
        yield from text.stack(names.stack(block.stack))

    def _freed(self, freed: Freed) -> Iterator[str]:
        names = self._host.names
        yield f"  freed by {names.thread(freed.thread)}"
        yield from text.stack(names.stack(freed.stack))

    def _bad(self, words: list[str]) -> Iterator[str]:
        """bad [N]                the last N bad frees (3), with their stacks"""
        number = _number(words[0], "bad takes a number.") if words else 3
        self._host.sync()
        reports = self._host.bad_frees
        if not reports:
            yield "No bad frees."
        for report in reports[-number:]:
            yield from text.bad_free(report)
        if len(reports) > number:
            yield f"{len(reports) - number:,} earlier ones are not shown."

    def _refs(self, words: list[str]) -> Iterator[str]:
        """refs ADDRESS           who points to a live block, or into it: variables, stacks, registers, other blocks"""
        found = self._host.refs(_address("refs", words))
        for each in found:
            inside = f", {each.offset} bytes into it" if each.offset else ""
            yield f"  {each.where}" + (f", at {each.address:#x}" if each.address else "") + inside
        yield f"{text.count(len(found), 'pointer')} found." if found else "Nothing was found that points to it."

    def _leaks(self, words: list[str]) -> Iterator[str]:
        """leaks [N]              what nobody will free: lost, growing, still held; the N largest call sites of each (10)"""
        number = _number(words[0], "leaks takes a number.") if words else 10
        yield from recorded.leak_report(self._host.leak_report(self._suppressions), number, "leaks N")

    def _verify(self, words: list[str]) -> Iterator[str]:
        """verify                 compare the live set with DPDK's own list of busy blocks, at one moment"""
        difference = self._host.verify()
        if difference is None:
            yield "This DPDK has no rte_malloc_dump_heaps: there is nothing to compare with."
        else:
            yield from text.verified(difference, self._host.names)

    def _record(self, words: list[str]) -> Iterator[str]:
        """record FILE            record the session from here on, for the reports: rtetrack-frida summary FILE"""
        if not words:
            raise BadUsage("record takes the path of a new file.")
        path = Path(words[0]).expanduser()
        self._host.record(path)
        yield f"Recording into {path}."

    def _pause(self, words: list[str]) -> Iterator[str]:
        """pause                  stop recording; the program goes on"""
        self._host.pause()
        yield "Paused: nothing is recorded until `resume`."

    def _resume(self, words: list[str]) -> Iterator[str]:
        """resume                 record again"""
        self._host.resume_recording()
        yield "Recording."

    def _detach(self, words: list[str]) -> Iterator[str]:
        """detach                 take the agent out; the program runs on at its old speed"""
        self._host.detach()
        yield "Detached." + (" Waiting for the program to end; Ctrl-C reaches it." if self._spawned else "")

    def _kill(self, words: list[str]) -> Iterator[str]:
        """kill                   kill the program (SIGKILL)"""
        self._host.kill()
        yield "Killed."

    def _send(self, words: list[str]) -> Iterator[str]:
        """send TEXT              type TEXT, as it is, and Enter at the spawned program's terminal; ^C, ^D, ... alone: that key"""
        if self._terminal is None:
            raise BadUsage("Only a spawned program has its terminal here.")
        try:
            self._terminal.type("".join(words))
        except OSError:
            raise BadUsage("The program has closed its terminal.") from None
        return iter(())

    def _quit(self, words: list[str]) -> Iterator[str]:
        """quit                   leave; an attached program runs on, a spawned one is ended (SIGTERM)"""
        self._leaving = True
        if self._spawned:
            self._host.end()
            return iter(("The program was told to end (SIGTERM).",))
        return iter(())

    def _help(self, words: list[str]) -> Iterator[str]:
        """help                   this list"""
        for usage in usages():
            yield f"  {usage}"
        yield "Ctrl-D is quit. Ctrl-C " + ("goes to the program." if self._spawned else "is quit too.")


def _address(command: str, words: list[str]) -> int:
    if len(words) != 1:
        raise BadUsage(f"{command} takes one address, as in `{command} 0x140c27f80`.")
    try:
        return int(words[0], 16)
    except ValueError:
        raise BadUsage(
            f"{words[0]} is no address.", f"Give it in hexadecimal, as in `{command} 0x140c27f80`."
        ) from None


def _number(word: str, usage: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise BadUsage(f"{word} is no positive number: {usage}")
    return int(word)
