"""Glue: bytes of clients and operators become calls, and replies become bytes; nothing is decided here.

    app          which paths there are, and who may ask for them
    sockets      which connections are accepted and kept
    middlewares  every request: its id, its errors, its line in the log
    access       who asks, and what they may
    read_body    where a body ends, and how long it may take
    routes       the handlers; `generate` serves every dialect, and `openapi.json` describes all the others
    relay        streams on their way to clients
    keep_alive   comments for clients that wait for one
    stall        clients that take nothing
    patience     how long a client may take
    app_keys     what handlers find in the application

How a request ended is known at the end of `routes.generate`; `middlewares` writes its line in the log.
"""
