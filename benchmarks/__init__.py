"""Benchmarks and load tests. Each verifies its output counts before it prints a figure."""
