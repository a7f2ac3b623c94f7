"""A stand-in engine on real sockets: HTTP, KV events and the side channel.

    stand_in      owns all that follows, and the models of its ranks
    handlers      its endpoints, each with a path in `Handlers.__init__`
    http_edge     bodies in and out, as vLLM words them
    rank          drives one model, step by step
    pace          when a step is to end
    publisher     KV events
    side_channel  moves blocks to another engine
    metrics       `/metrics`
    admin         how tests make it fail: `faults` has the ways
    config        what a stand-in is started with

A generating route is added in `simulation.api.routes`, any other endpoint in `handlers`.
"""
