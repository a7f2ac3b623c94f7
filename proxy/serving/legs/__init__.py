"""One upstream request each: the prefill leg, the decode leg, and what both do."""
