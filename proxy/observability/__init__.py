"""What happened, counted: series for Prometheus, with bounded labels.

    metrics      every counter and histogram, and what of the fleet is read at a scrape
    predictions  how right the index was
    snapshots    what is on disk

Who counts knows no metrics: each says in a Protocol, `Accounts`, what it tells, and `Metrics` implements
them. No request is recorded here; its line in the log is written by `edge.middlewares`.
"""
