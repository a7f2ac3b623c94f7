"""kvproxy: the router for disaggregated vLLM. Each folder is a room; imports point down only.

    cli            the command line: flags become a configuration, a run becomes an exit code
    edge           HTTP of clients and operators: sockets, access, routes, relay
    fitting        probes engines, and makes a profile of what they took
    doctor         examines each engine and each pair of engines, and says what to do where they fail
    observability  hears what happened: metrics for Prometheus, the access log, other consumers
    simulation     stand-in engines: engine (the model), api (vLLM's words), live (sockets); replay: simulated
                   time; report: its figures as a page; planning: which fleet carries most
    serving        one request: attempts, legs, what they hand over, retries, lists of prompts
    admission      which requests are let in, and when: the queue, and the memory for bodies
    scheduling     the candidates for a leg, what each costs, and where the leg goes
    watching       who the instances are, whether they live, and what they serve
    tokenizing     from a request to the token ids that engines will see, or to "unknown"
    caches         what is known of the engines' caches, and how often it was right
    snapshots      that knowledge on disk, for the next start
    connectors     how KV gets from a prefill to a decode engine: one file a connector
    upstream       all HTTP to engines; engine_api: what engines answer about themselves
    latency        how long engines take, learned from what they took
    fleet          the instances, what runs on each, and their health
    request        what a client asked, and what an engine streams back, as values
    config         all settings: plain values, checked once
    traces         workloads: read from the formats that people have, generated, recorded

All rooms stand on the modules beside them: `errors`, `findings`, `phases`, `happenings`, `headers`, `tasks`,
`logs`, `log_lines`, `fair_queue`, `key_runs`, `descriptors`, `private_files`, `tls`, `shown`. Below these
lies `kvevents`, the library that follows the engines' caches.

Between `edge` and the rooms below it stands `service`, which puts them together.

A request goes down from `edge` to `upstream` and its answer comes back up; docs/architecture.md follows one.
"""
