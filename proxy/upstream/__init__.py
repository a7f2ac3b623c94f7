"""All traffic to engines goes through here, and whatever goes wrong on a connection leaves as a `LegError`.

Its files:

    client      sends legs and questions to engines
    pool        the connections to all engines
    connection  one connection: writes requests, reads answers
    answers     reads the bytes of answers
    questions   writes the heads of requests
    bounds      how long an answer may be
    names       resolves the names of engines
    engine_api  what engines answer about themselves, as typed values

`answers`, `questions` and `bounds` are pure.
"""
