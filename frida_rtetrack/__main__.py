"""`python -m frida_rtetrack`."""

from frida_rtetrack.cli import main

main()
