"""C that runs in the target (and map_kernel.c, which runs in the host), and what compiles it ahead."""
