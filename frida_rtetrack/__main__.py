"""`python -m frida_rtetrack`."""

from frida_rtetrack.commands.entry import main

main()
