"""A leg is one upstream request: here are the prefill leg, the decode leg, and what both share."""
