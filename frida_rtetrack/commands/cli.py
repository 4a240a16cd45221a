"""The command line: parse, call, print."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click

from frida_rtetrack.commands import helptexts, reports
from frida_rtetrack.commands.coloroption import color_option
from frida_rtetrack.commands.export import export
from frida_rtetrack.commands.flamegraph import flamegraph
from frida_rtetrack.commands.grouped import GroupedCommand, place, under
from frida_rtetrack.commands.leakkinds import leak_kinds
from frida_rtetrack.commands.leaving import ENDING, SignalWatch
from frida_rtetrack.commands.moments import size, source_root_option
from frida_rtetrack.commands.optionalvalue import OptionalValue
from frida_rtetrack.commands.progress import ProgressReporter
from frida_rtetrack.commands.prompt import Prompt
from frida_rtetrack.commands.terminal import ProgramTerminal
from frida_rtetrack.errors import BadUsage, NotLive, RtetrackError, naming_what_ran_out
from frida_rtetrack.host import VERSION, Host
from frida_rtetrack.options import DEFAULT_DUMP_PATH, ENGINES, MAX_BUFFER_MIB, MAX_FRAMES, LeakKind, Options
from frida_rtetrack.reporters import bars, outfile, sarif, streams, text
from frida_rtetrack.reporters.console import print_help_of
from frida_rtetrack.reports.cigate import Gate, read_suppressions, suppressions_for
from frida_rtetrack.reports.summary import Summary
from frida_rtetrack.symbols.dpdk import NEEDED
from frida_rtetrack.target import undoing
from frida_rtetrack.target.engine import native_compiler
from frida_rtetrack.target.launch import end_held
from frida_rtetrack.target.target import Ending

EXIT_TOOL_FAILED = 125
"""As env(1) and timeout(1) do: not a status that a program is likely to have of its own."""
AGGREGATE_SECONDS = 60
UNDOING_SECONDS = 10.0
"""After a failure, for what has come into the program to leave it; what is still there then leaves by itself."""
ARRIVING_SECONDS, LEAVING_SECONDS, LAST_WORDS_SECONDS = 0.5, 1.5, 0.4
"""From a signal to the moment when what goes on is given up: while coming, while leaving; and to say what is known then."""


def _tracking_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            *under("How it is tracked",
            click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help="How to hook and unwind."),
            click.option("--lib", "library", metavar="NAME", envvar="RTE_MALLOC_TRACK_DPDK_LIBNAME",
                         help="The module with DPDK in it (default: whichever defines its functions)."),
            click.option("--symbol", "symbols", multiple=True, metavar="FUNCTION=MODULE+0xOFFSET",
                         help="Where a function of DPDK is in a stripped program that has DPDK linked in; FUNCTION=none: nowhere."),
            click.option("--backtrace/--no-backtrace", default=True, envvar="RTE_MALLOC_TRACK_BACKTRACE", help="Record stacks (default)."),
            click.option("--free-backtrace/--no-free-backtrace", default=True, help="Record the stacks of frees too (default)."),
            click.option("--max-frames", type=click.IntRange(1, MAX_FRAMES), default=64, show_default=True, help="Frames of a stack."),
            click.option("--buffer", "buffer_mib", type=click.IntRange(1, MAX_BUFFER_MIB), default=64, show_default=True, metavar="MIB",
                         help="Size of the event ring in MiB."),
            click.option("--follow-fork", is_flag=True, help="Track the children that it forks and programs that they or it execute, too."),
            ),
            *under("What is written",
            click.option("--dump-file", type=click.Path(path_type=Path, readable=False), default=DEFAULT_DUMP_PATH, show_default=True,
                         envvar="RTE_MALLOC_TRACK_DUMP_FILE", help="Where SIGRTMIN and bad frees write the live allocations."),
            click.option("--dump-on-bad-free/--no-dump-on-bad-free", default=True, help="Write the dump at a bad free (default)."),
            click.option("--summary", "summary_path", type=click.Path(path_type=Path, readable=False), metavar="FILE", help="Write the summary as JSON."),
            click.option("--sarif", "sarif_path", type=click.Path(path_type=Path, readable=False), metavar="FILE",
                         help="Write bad frees and leaks as SARIF 2.1.0, for code hosts."),
            source_root_option,
            click.option("-o", "--output", "record", type=click.Path(path_type=Path), metavar="FILE",
                         help="Record the session into FILE, for the reports: rtetrack-frida summary FILE."),
            click.option("--force", "record_over", is_flag=True, help="Overwrite the recording that is in that FILE."),
            click.option("--aggregate", "record_aggregate_seconds", cls=OptionalValue, bare=str(AGGREGATE_SECONDS),
                         type=click.FloatRange(1), metavar="SECONDS",
                         help=f"Record no events, but what each call site holds every so often ({AGGREGATE_SECONDS} s), and what is live at the "
                              "end: for runs of days."),
            click.option("--max-size", "record_max_bytes", type=size, metavar="SIZE",
                         help="End the recording, at a whole second, before its file is larger: 500M, 2G."),
            click.option("--symbols/--no-symbols", "record_names", default=True,
                         help="Look names up when the recording ends (default), or leave that to its reader."),
            ),
            *under("What is checked at the end",
            click.option("--verify", is_flag=True, help="Compare with DPDK's own heap at the end."),
            click.option("--error-exitcode", type=click.IntRange(1, 255), metavar="N",
                         help="End with the exit status N on a bad free, or whatever else is checked and found."),
            click.option("--leak-check", cls=OptionalValue, bare="all", type=leak_kinds, metavar="lost|growing|all",
                         help="Look for leaks, and with "
                         "--error-exitcode end so on them, too: what is lost when the program ends (nothing points there), call sites "
                         "that only grow over the run, or all that is live at rte_eal_cleanup (default). Several: lost,growing."),
            click.option("--max-bytes", type=size, metavar="SIZE", help="With --error-exitcode: on more bytes live at once, too: 512K, 64M."),
            click.option("--suppressions", type=click.Path(path_type=Path), metavar="FILE",
                         help="What --error-exitcode passes over: lines leak:FUNCTION, badfree:FUNCTION, as LeakSanitizer's."),
            click.option("--print-suppressions", is_flag=True, help="Print at the end the suppressions that name all that was found."),
            ),
            *under("What is shown",
            click.option("--no-repl", is_flag=True, help="No prompt (the default where standard input is no terminal)."),
            click.option("--quiet", is_flag=True, help="Print bad frees and problems only."),
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, epilog=helptexts.ALL)
@click.version_option(
    VERSION, prog_name="rtetrack-frida", message=f"%(prog)s %(version)s, engine: native ({native_compiler()})"
)
def cli() -> None:
    """Track the memory that a program takes from DPDK's heap: allocations, leaks, stray and duplicate frees."""


@cli.command(cls=GroupedCommand, context_settings={"allow_interspersed_args": False}, epilog=helptexts.SPAWN)
@_tracking_options
@under(
    "How it is tracked",
    click.option(
        "--also-attach", multiple=True, metavar="PID", help="A running process that shares the program's DPDK heap."
    ),
)[0]
@under(
    "What is checked at the end",
    click.option(
        "--allow-no-dpdk", is_flag=True, help="A program that ends well without having used DPDK passes (else: 125)."
    ),
)[0]
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def spawn(
    program: str, arguments: tuple[str, ...], also_attach: tuple[str, ...], allow_no_dpdk: bool, **options: Any
) -> None:
    """Run PROGRAM with ARGUMENTS, tracked from its first instruction.

    Everything after PROGRAM is the program's. The exit status is the program's too (128+N if signal N killed it), and
    125 if rtetrack-frida itself failed, or if the program ended with 0 and never used DPDK: then nothing was checked.
    """
    run = _Run(**options)
    sys.exit(run.spawn((program, *arguments), also_attach, allow_no_dpdk=allow_no_dpdk))


@cli.command(cls=GroupedCommand, epilog=helptexts.ATTACH)
@_tracking_options
@under(
    "What is shown",
    click.option("--duration", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Leave after so long."),
)[0]
@click.argument("targets", metavar="PID|NAME...", nargs=-1, required=True)
def attach(targets: tuple[str, ...], duration: float | None, **options: Any) -> None:
    """Join the running process PID or NAME; it runs on when you leave.

    Several processes, a primary and its secondaries, are tracked as one heap.
    """
    run = _Run(**options)
    sys.exit(run.attach(targets, duration))


for report in (*reports.COMMANDS, export, flamegraph):
    cli.add_command(report)
for command in (cli, *cli.commands.values()):
    command.params.append(place(color_option(), "What is shown"))


class _Run:
    """One run of a command: the host, the reporter and what signals do."""

    def __init__(
        self,
        *,
        summary_path: Path | None,
        sarif_path: Path | None,
        source_root: Path | None,
        no_repl: bool,
        quiet: bool,
        dump_file: Path,
        error_exitcode: int | None,
        leak_check: frozenset[LeakKind] | None,
        max_bytes: int | None,
        suppressions: Path | None,
        print_suppressions: bool,
        **tracking: Any,
    ) -> None:
        if error_exitcode is None and (max_bytes is not None or (suppressions is not None and sarif_path is None)):
            raise BadUsage(
                "--max-bytes and --suppressions say what --error-exitcode ends with.",
                "Give the exit status, too: --error-exitcode 1.",
            )
        self._error_exitcode = error_exitcode
        leak_check = leak_check or frozenset()
        self._gate = Gate(leak_check, max_bytes, [] if suppressions is None else read_suppressions(suppressions))
        self._print_suppressions = print_suppressions
        self._options = Options(dump_path=dump_file, leak_check=leak_check, **tracking)
        self._summary_path = summary_path
        self._reporter = ProgressReporter(quiet=quiet)
        self._quiet = quiet
        if quiet:
            bars.BARS.hide()
        self._with_prompt = not no_repl and sys.stdin.isatty() and sys.stdout.isatty()
        self._asked_to_end = 0
        self._spawned = False
        self._running = False
        """A program that was spawned has begun."""
        self._status: int | None = None
        """The exit status, once everything is told and written."""
        self._tty = _tty_attributes()
        self._host: Host | None = None
        self._early_signals: list[int] = []
        self._sarif_path = sarif_path
        self._source_root = source_root or sarif.source_root(Path.cwd())
        for path, what in ((summary_path, "summary"), (sarif_path, "SARIF file")):
            if path is not None:
                outfile.check_writable(path, what)
        about_recording = self._options.record_aggregate_seconds, self._options.record_max_bytes
        if about_recording != (None, None) and self._options.record is None and not self._with_prompt:
            raise BadUsage("--aggregate and --max-size are about a recording.", "Name its file: -o FILE.")

    def spawn(self, argv: tuple[str, ...], also_attach: tuple[str, ...], *, allow_no_dpdk: bool = False) -> int:
        self._spawned = True
        terminal = ProgramTerminal(self._reporter.output) if self._with_prompt else None
        with (
            self._signals(),
            Host.spawn(
                argv,
                self._options,
                self._reporter,
                terminal=None if terminal is None else terminal.slave,
                also_attach=also_attach,
                resume=False,
            ) as self._host,
        ):
            self._reporter.arrived()
            if terminal is not None:
                terminal.start()
            self._host.resume()
            self._running = True
            self._take_early_signals()
            self._stay(None, terminal)
            ending = self._host.wait_for_exit()
            if terminal is not None:
                terminal.close()
            failed = self._conclude(self._host, passes_without_dpdk=allow_no_dpdk)
            self._status = _status_of(ending) if failed is None else failed
        return self._status

    def attach(self, targets: tuple[str, ...], duration: float | None) -> int:
        with self._signals(), Host.attach(targets, self._options, self._reporter) as self._host:
            self._reporter.arrived()
            self._take_early_signals()
            self._stay(duration, None)
            threading.Thread(target=self._look_names_up, daemon=True).start()
            self._host.detach()
            self._status = self._conclude(self._host) or 0
        return self._status

    def _look_names_up(self) -> None:
        """While Frida leaves: if that takes too long, the last words have no time for the names of what they tell."""
        assert self._host is not None
        with contextlib.suppress(RtetrackError):
            self._host.top()

    def _stay(self, duration: float | None, terminal: ProgramTerminal | None) -> None:
        assert self._host is not None
        if self._with_prompt:
            prompt = Prompt(
                self._host,
                self._reporter,
                terminal,
                spawned=self._spawned,
                on_interrupt=lambda: self._on_signal(signal.SIGINT),
                suppressions=self._gate.suppressions,
            )
            with bars.BARS.hidden():
                prompt.run(duration)
            if terminal is not None:
                terminal.follow_size()
        else:
            self._host.wait(duration)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        watch = SignalWatch(self._patience, self._give_up)

        def on_signal(number: int, frame: FrameType | None) -> None:
            if number in ENDING:
                watch.note(number)
            self._on_signal(number)

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGRTMIN, *ENDING)}
        try:
            yield
        finally:
            self._reporter.arrived()
            watch.stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int) -> None:
        host = self._host
        if host is None:  # still being spawned or attached to
            self._early_signals.append(number)
            return
        try:
            if number == signal.SIGRTMIN:
                host.dump_soon("SIGRTMIN to rtetrack-frida")
            elif not self._spawned:
                host.leave()
            else:
                self._asked_to_end += 1
                if self._asked_to_end > 1:
                    host.kill()
                else:
                    host.interrupt() if number == signal.SIGINT else host.send_signal(number)
                    host.let_run()
        except NotLive:  # nothing of ours is left; what a launcher left behind is not waited for any longer
            host.leave()

    def _take_early_signals(self) -> None:
        """Does what signals asked for that came before there was a host."""
        for number in self._early_signals:
            self._on_signal(number)

    def _patience(self, signals: int) -> float | None:
        """How long to wait after so many signals before giving up. A program that was spawned may take its time to end."""
        if self._running:
            return (None, None, LEAVING_SECONDS, 0.0)[min(signals, 3)]
        if signals > 1:
            return 0.0
        return ARRIVING_SECONDS if self._host is None else LEAVING_SECONDS

    def _give_up(self, number: int) -> None:
        """Ends at once, by a thread: what waits for Frida or for the program is not to be woken."""
        last_words = threading.Thread(target=self._say_last_words, daemon=True)
        last_words.start()
        last_words.join(LAST_WORDS_SECONDS)
        os._exit(128 + number if self._status is None else self._status)

    def _say_last_words(self) -> None:
        end_held()
        bars.BARS.stop()
        if self._tty is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, self._tty)
        if self._status is not None:
            return
        if self._host is None:
            self._reporter.problem("Left before the tracking began; what has come into the program leaves by itself.")
            return
        if not self._spawned:
            self._reporter.problem(
                "The program did not let go in time: what is in it leaves by itself. This is what was read until now."
            )
        found = self._host.summary()
        self._write_summary(found)
        if not self._quiet:
            self._reporter.say(*text.summary(found))
        self._write_sarif(found)

    def _write_summary(self, found: Summary) -> None:
        """Raises OutputError."""
        if self._summary_path is not None:
            outfile.write_json(self._summary_path, found.as_json())

    def _write_sarif(self, found: Summary) -> None:
        """Raises OutputError."""
        if self._sarif_path is not None:
            with outfile.whole(self._sarif_path) as file:
                sarif.write(found, file, root=self._source_root, suppressed=self._gate.suppresses)

    def _conclude(self, host: Host, *, passes_without_dpdk: bool = False) -> int | None:
        """Tells and writes what was found. Returns the exit status where that is an error, not the program's own."""
        found = host.summary()
        if not self._quiet:
            self._reporter.say(*text.summary(found))
        if not host.hooks:
            self._reporter.problem(self._never_loaded(host, found))
        self._write_summary(found)
        self._write_sarif(found)
        if self._options.record is not None and not self._quiet:
            self._reporter.say(f"recorded in {self._options.record}: rtetrack-frida summary {self._options.record}")
        if self._print_suppressions:
            self._reporter.say(*suppressions_for(found))
        if host.wrong_symbols():
            return EXIT_TOOL_FAILED
        if not found.used_dpdk and passes_without_dpdk:
            return None
        if self._error_exitcode is not None and (failed := self._judge(found, self._error_exitcode)) is not None:
            return failed
        if not found.used_dpdk and found.ending.exit_status == 0:
            self._reporter.problem(
                f"Exit status {EXIT_TOOL_FAILED}: DPDK's heap was never used, so nothing was checked. "
                "--allow-no-dpdk lets that pass."
            )
            return EXIT_TOOL_FAILED
        return None

    def _never_loaded(self, host: Host, found: Summary) -> str:
        name = os.path.basename(found.argv[0]) if found.argv else "The program"
        close = ", ".join(host.modules_like_dpdk()) or "none"
        if self._options.library is not None:
            return (
                f"--lib {self._options.library} named no module of {name} that has DPDK's allocation functions. Modules that "
                f"come close: {close}. Without --lib, every module is searched."
            )
        return (
            f"{name} never loaded DPDK: no module defined rte_malloc_socket and rte_free (exported names, .symtab and "
            f"the debug file were searched; --symbol says where they are: {', '.join(NEEDED)}). Modules that come close: {close}."
            + ("" if self._options.follow_fork else " If it executes the program with DPDK: --follow-fork.")
        )

    def _judge(self, found: Summary, exit_status: int) -> int | None:
        failures = self._gate.failures(found)
        for unused in self._gate.unused():
            self._reporter.problem(f"The suppression {unused} named nothing.")
        if not failures:
            return None
        self._reporter.problem(f"Exit status {exit_status}: {' '.join(failures)}")
        return exit_status


def _status_of(ending: Ending) -> int:
    """What to end with where a program that was spawned ended so."""
    if ending.exit_status is not None:
        return ending.exit_status
    if ending.signal is not None:
        return 128 + ending.signal
    return 0 if ending.why == "detached" else EXIT_TOOL_FAILED


def _tty_attributes() -> list[Any] | None:
    """How the terminal is set up that we read from, to put it back; None where it is none."""
    try:
        return termios.tcgetattr(sys.stdin.fileno())
    except (termios.error, OSError, ValueError):
        return None


def main() -> None:
    """The command `rtetrack-frida`."""
    streams.open_closed_streams()
    try:
        with bars.shown(), naming_what_ran_out():
            cli()
    except RtetrackError as error:
        print_help_of(error)
        undoing.wait(UNDOING_SECONDS)
        sys.exit(EXIT_TOOL_FAILED)
