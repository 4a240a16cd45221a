"""`python -m frida_rtetrack`."""

from frida_rtetrack.commands.cli import main

main()
