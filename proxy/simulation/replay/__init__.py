"""Simulated time: a workload on a fleet of model engines, routed by the objects that serve.

Its files:

    timeline    what happens next
    contents    blocks that are named by a workload instead of by their tokens
    job         a leg in an engine: its length and the names of its blocks
    instance    one engine: whole steps, and many that are alike at once
    use         what an instance did with its time
    router      the product's fleet, index, placement and lanes, and what becomes of a request
    fleets      which instances there are
    baselines   policies of others, to compare with
    records     what happened to each request
    figures     what that adds up to
    run         a workload, a fleet and a policy become figures
    comparison  several of those, as a table

Only clock and engines are simulated, and the engines by the rules of `engine`, which stand-ins obey as well.
"""
