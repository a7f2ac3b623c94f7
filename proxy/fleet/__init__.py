"""The fleet holds the instances, what runs on each, and their health. Pure.

    instance    one engine: what is known of it, changed by verbs alone
    fleet       the instances together: which are there, and whether a request could be served
    claims      a leg that is counted on an instance, from its decision until its end
    load        what the claims on one instance add up to
    work        how long all that is predicted to take
    adapters    which LoRA adapters they are for, and how long another one waits for a slot
    circuit     the health of one instance, as checks and legs show it
    fullness    how many legs an engine has room for, as far as it has said
    gauges      what an engine has told of all that runs there
    denials     models that an engine lists and does not serve
    why         why an instance is passed over, in one vocabulary
    model_card  one model or adapter that an instance serves

There is no loop, no socket and no clock: times are passed in. Changes are announced to listeners, which only
take a note of them.
"""

from proxy.fleet.claims import Claim
from proxy.fleet.fleet import Fleet
from proxy.fleet.instance import MAX_RANKS, Instance, SourceView, Status
from proxy.fleet.model_card import ModelCard

__all__ = ["MAX_RANKS", "Claim", "Fleet", "Instance", "ModelCard", "SourceView", "Status"]
