"""What stands below the options in `--help`: examples, the variables, the prompt's commands, completion in the shell."""

from __future__ import annotations

from frida_rtetrack.commands.grouped import verbatim
from frida_rtetrack.commands.prompt import usages

_VARIABLES = """
RTE_MALLOC_TRACK_DPDK_LIBNAME   as --lib
RTE_MALLOC_TRACK_BACKTRACE      0: as --no-backtrace
RTE_MALLOC_TRACK_DUMP_FILE      as --dump-file; an option beats a variable
RTETRACK_COMPILER               tinycc: the engine is compiled in the program, not taken as it was built
"""

ALL = verbatim(
    Examples="""
rtetrack-frida spawn ./app --no-huge -m 512      start a program; everything after it is the program's
rtetrack-frida attach 4711                       join one that runs, and leave it running
rtetrack-frida spawn -o app.rtrec ./app          record, then look from every side:
rtetrack-frida flamegraph app.rtrec
rtetrack-frida COMMAND --help                    more examples, the variables, what can be typed at the prompt
""",
    Completion_of_commands_and_options="""
eval "$(_RTETRACK_FRIDA_COMPLETE=bash_source rtetrack-frida)"        in ~/.bashrc
eval "$(_RTETRACK_FRIDA_COMPLETE=zsh_source rtetrack-frida)"         in ~/.zshrc
_RTETRACK_FRIDA_COMPLETE=fish_source rtetrack-frida | source         in ~/.config/fish/config.fish
""",
)

SPAWN = verbatim(
    Examples="""
rtetrack-frida spawn ./app --no-huge -m 512
rtetrack-frida spawn --follow-fork ./start.sh                what the script starts is tracked
rtetrack-frida spawn --verify --summary found.json ./app     compared with DPDK's own heap at the end
rtetrack-frida spawn --error-exitcode 1 --leak-check ./app   for CI: fails on bad frees and leaks
rtetrack-frida spawn --also-attach 4711 ./secondary --proc-type=secondary
""",
    Variables=_VARIABLES,
    Signals="""
SIGRTMIN, to the program or to rtetrack-frida: a dump of what is live.
SIGINT, SIGTERM, SIGHUP go to the program; a second one kills it.
""",
    At_the_prompt="\n".join(usages()),
)

ATTACH = verbatim(
    Examples="""
rtetrack-frida attach 4711
rtetrack-frida attach --duration 60 -o app.rtrec dpdk-testpmd   by name; leaves after a minute
rtetrack-frida attach 4711 4712                                 a primary and its secondary
""",
    Variables=_VARIABLES,
    Signals="""
SIGRTMIN, to the program or to rtetrack-frida: a dump of what is live.
SIGINT, SIGTERM, SIGHUP: leave; the program runs on.
""",
    At_the_prompt="\n".join(usages()),
)
