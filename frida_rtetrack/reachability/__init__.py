"""Who still points to a block: the program's memory searched from outside, while it runs."""
