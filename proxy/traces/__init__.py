"""Workloads: what was asked of a fleet, when, and what of it was shared. No sockets, no clock.

    workload    one format in memory, whatever file or generator it came from

Nothing here knows of scheduling or engines: a workload says what arrives, a simulator what becomes of it.
"""
