"""Sockets decide which connections are accepted, how long they may be silent, and which are closed first."""
