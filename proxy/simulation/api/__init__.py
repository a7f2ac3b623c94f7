"""Pure: how vLLM reads requests, refuses them and words its answers."""
