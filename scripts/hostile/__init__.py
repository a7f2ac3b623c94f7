"""What `bench_hostile.py` is made of: attacks, and a kvproxy whose event loop is watched while they go on."""
