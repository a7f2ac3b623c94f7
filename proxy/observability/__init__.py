"""Observability hears what happened and turns it into series for Prometheus, with bounded labels, and a log.

    telling      hands each happening to all that listen for its kind
    family       the name and meaning of a metric, for `/metrics` and for docs/metrics.md
    reference    makes that page
    series       metrics that happenings move
    counting     the numbers of series, kept as plain numbers, and their collector
    page         writes what `/metrics` answers, a slice a turn
    metrics      all series together: the tables of the files below
    requests     how requests ended, and which were refused
    legs         legs, retries, and what becomes of prefilled blocks
    caches       KV events
    predictions  how right the index was
    latency      how long engines take
    fleet        the instances
    snapshots    snapshots on disk
    process      connections and tasks
    recorder     a line for each request, to be replayed
    decision_log a line for each decision, with what came of it
    line_writer  lines are written in a thread of its own
    record_files where these lines go
    access_log   a line for each request

The rooms that tell know nothing of this one: `proxy/happenings.py` has all that can happen, as values.
"""
