"""One file an output form. A reporter draws what was computed elsewhere; the computing half needs no terminal."""
