"""Connections: which are accepted, how long they may be silent, and which are closed first."""
