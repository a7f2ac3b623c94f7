"""Glue: bytes of clients and operators become calls, and replies become bytes; nothing is decided here."""
