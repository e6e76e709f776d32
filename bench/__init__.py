"""Speed and accuracy runs. Each writes bench/results/*.json; bench.report makes BENCHMARKS.md of them."""
