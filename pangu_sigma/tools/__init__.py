"""Tools around training: benchmarks and comparisons."""
