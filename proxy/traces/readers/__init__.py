"""Readers of traffic: a file a format, found out by content.

    base      what every reader keeps to
    formats   which reader reads a file
    lines     Mooncake's JSON lines, aiperf's with sessions, and our own
    bailian   Bailian's JSON lines
    azure     the LLM inference traces of Azure, as CSV
    burstgpt  BurstGPT, as CSV
    agents    sessions of agents with sub-agents, as JSON
    csv_rows  rows of CSV by the names of their columns
    reading   whole workloads from files and folders
    faults    what is wrong with a member, in words

What a file does not tell is never invented, and stands in the workload's source.
"""

from proxy.traces.readers.base import ReadingOptions
from proxy.traces.readers.reading import read

__all__ = ["ReadingOptions", "read"]
