"""kvproxy: the router for disaggregated vLLM. Each folder is a room; imports point down only.

    cli            the command line: flags become a configuration, a run becomes an exit code
    edge           HTTP of clients and operators: sockets, access, routes, relay; nothing is decided here
    doctor         what each engine and each pair of them does, examined; and what to do where they do not
    observability  who hears what happened; above all the series for Prometheus
    simulation     stand-in engines: engine (the model), api (vLLM's words), live (sockets)
    serving        one request: attempts, legs, what they hand over, retries, lists of prompts
    admission      who is let in when: the queue in front of the engines, and the bodies in memory
    scheduling     which candidates there are for a leg, what each costs, and where the leg goes
    watching       who the instances are, whether they live, and what they serve
    tokenizing     from a request to the token ids its engines will see, or to "unknown"
    caches         what is known of the engines' caches, and how often it was right
    snapshots      that knowledge on disk, for the next start
    connectors     how KV gets from a prefill to a decode engine: one file a connector
    upstream       all HTTP to engines; engine_api: what each says of itself, read once
    fleet          the instances, what runs on each, and the state of their circuits
    request        what a client asked, and what an engine streams back, as values
    config         what kvproxy can be told: plain values, checked once

The ground on which all stand: `errors`, `findings`, `phases`, `happenings`, `headers`, `tasks`, `logs`,
`log_lines`, `fair_queue`, `descriptors`, `private_files`, `tls`, `shown`. Below it lies `kvevents`, the
library that follows the engines' caches.

Between `edge` and the rooms below it stands `service`, which puts them together.

A request goes down from `edge` to `upstream` and its answer comes back up; docs/architecture.md follows one.
"""
