"""Pure: the instances, what runs on each, and what their circuits make of what was seen of them.

    instance    one engine: what is known of it, changed by verbs alone
    fleet       the instances together: which are there, and whether a request could be served
    claims      a leg that is counted, from when it is decided until it has ended
    load        what is counted on the ranks of one instance
    circuit     the health of one instance, as checks and legs show it
    fullness    what its engine has said of its room
    denials     which models it lists and does not serve
    why         why an instance is passed over, in one vocabulary
    model_card  one name that it serves

No loop, no socket and no clock: times are passed in. What changes is announced to listeners, who take a note
of it.
"""

from proxy.fleet.claims import Claim
from proxy.fleet.fleet import Fleet
from proxy.fleet.instance import MAX_RANKS, Instance, SourceView, Status
from proxy.fleet.model_card import ModelCard

__all__ = ["MAX_RANKS", "Claim", "Fleet", "Instance", "ModelCard", "SourceView", "Status"]
