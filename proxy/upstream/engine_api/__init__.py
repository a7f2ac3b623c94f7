"""What engines answer about themselves is read here, each answer in one place, into typed values.

    asking         how a question is put to an engine, and what is raised if there is no answer
    about          /health, /version, /is_sleeping
    models         /v1/models
    tokens         /tokenize
    event_sources  /kv_event_sources
    metrics        /metrics

Nothing is decided here: the caller decides what an answer means. Answers to requests are read in `connectors`
and `request`.
"""
