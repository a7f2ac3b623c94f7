"""Workloads: what was asked of a fleet, when, and what of it was shared. No sockets, no clock.

    workload    one format in memory, whatever file or generator it came from
    readers     from the formats that people have
    generators  of different nature, by seed
    writing     as lines that Mooncake's readers understand
    shaping     faster, sliced, spread, staggered
    summary     lengths, reuse and bursts, for reports
    recording   lines of our own traffic, with nothing in them that can be read
    scrambling  salted ids for blocks and sessions
    numbering   ids of blocks from 0 on
    ordering    by arrival, and none before the one that it waits for
    blocks      a prompt's ids, told or not
    loops       who waited for whom
    files       lines of plain and packed files

Nothing here knows of scheduling or engines: a workload says what arrives, a simulator what becomes of it.
"""
