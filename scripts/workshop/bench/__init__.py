"""What the bench_*.py scripts share."""
