"""Markdown pages from bench/results: a page in detail per result file, and the tables of BENCHMARKS.md."""
