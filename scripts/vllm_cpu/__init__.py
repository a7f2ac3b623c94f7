"""Real vLLM engines on a machine without a GPU: a test aid, no part of kvproxy."""
