"""From events alone: what is live, which frees were bad and why, and how that compares with DPDK's own heap."""
