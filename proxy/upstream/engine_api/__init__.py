"""What engines answer when they are asked about themselves: each answer is read in one place, once, into
typed values.

    asking         how a question is put to an engine, and what is raised where no answer comes
    about          /health, /version, /is_sleeping
    models         /v1/models
    tokens         /tokenize
    event_sources  /kv_event_sources
    metrics        /metrics

Nothing is decided here: who asks says what an answer means. The answers to requests are read in `connectors`
and `request`, not here.
"""
