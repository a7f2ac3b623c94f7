"""How long engines take, learned from what they took: pure, times are passed in.

`model` answers for an instance or a pair, `pool` fits one formula for instances that are alike, with a factor
for each, by `least_squares`; `service_times` makes of legs the times that engines worked; `profiles` has the
figures to begin with. docs/latency.md explains it. The rest of the proxy is not known here, nor any loop or
clock.
"""
