"""Return address -> function, file, line and inlined frames; and where DPDK is in a stripped program."""
