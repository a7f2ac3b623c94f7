"""Generators make workloads of different nature from figures and a seed.

    base       what every generator is: figures that are checked, and `generate`
    draws      lengths, times and popularity, drawn by seed
    contents   prompts that grow and fork, as ids of blocks
    systems    prompts under system prompts, some far more popular than others
    chats      conversations with think time (closed loop)
    agents     trees of agents whose contexts grow long (closed loop)
    documents  questions about long documents
    unrelated  prompts that have nothing in common
    naming     a generator by its name and figures in words

Equal figures and seeds make equal workloads.
"""

from proxy.traces.generators.agents import Agents
from proxy.traces.generators.base import MOST_SEED, Generator
from proxy.traces.generators.chats import Chats
from proxy.traces.generators.documents import Documents
from proxy.traces.generators.naming import GENERATORS, generator
from proxy.traces.generators.systems import Systems
from proxy.traces.generators.unrelated import Unrelated

__all__ = [
    "GENERATORS",
    "MOST_SEED",
    "Agents",
    "Chats",
    "Documents",
    "Generator",
    "Systems",
    "Unrelated",
    "generator",
]
