"""The benchmarks that the scripts bench_*.py launch, and what they share."""
