"""A session in a file: written while it happens, read and judged again later (docs/recording-format.md)."""
