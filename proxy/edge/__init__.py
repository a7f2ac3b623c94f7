"""The edge turns the bytes of clients and operators into calls, and replies into bytes. Where a request goes
is decided below it.

    app          the paths that are served, and on which socket
    sockets      which connections are accepted and kept
    exact_paths  finds routes by exact paths, and leaves all others to aiohttp
    middlewares  every request: its errors, and that it was answered
    visit        what is known of one request of HTTP while it is answered
    ids          draws ids for requests that have none
    access       who asks, and what they may do
    read_body    where a body ends, how long it may take to arrive, and the memory it takes
    routes       the handlers; `generate` serves every dialect, and `openapi.json` describes all others
    relay        passes streams on to clients
    whole        writes whole answers, head and body at once
    keep_alive   comments for a client whose stream takes long to begin
    stall        cuts clients that take nothing of their answer
    patience     how long a client may take
    app_keys     what handlers find in the application

`routes/generate.py` tells how a generating request ended (`RequestEnded`), and `middlewares` tells that any
request was answered (`Answered`), which is its line in the access log.
"""
