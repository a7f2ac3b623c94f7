"""The handlers: each file serves one group of paths."""
