"""Who hears what happened: series for Prometheus, with bounded labels, and whoever else listens.

    telling      a happening reaches all who listen for its kind
    family       what a series is called and what it counts, for `/metrics` and for docs/metrics.md
    reference    that page, made of it
    series       what happenings move, and how
    counting     the numbers themselves, plain ones, and how they are shown
    metrics      all series together: the tables of the files below
    requests     how requests ended, who was let in
    legs         legs, retries, and what becomes of prefilled blocks
    caches       KV events
    predictions  how right the index was
    fleet        the instances
    snapshots    what is on disk
    process      connections and tasks
    access_log   a line for each request

Who tells knows none of it: `proxy.happenings` has what can happen, as values.
"""
