"""What a prefill engine holds for a decode engine is fetched once, given back, or counted as stranded."""
