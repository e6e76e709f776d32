"""Speed and accuracy measurements. Each writes bench/results/*.json; bench.report writes the pages from them."""
