"""Engines as processes: real vLLM on a machine without a GPU, and stand-ins described and handled like
them.
"""
