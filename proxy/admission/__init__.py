"""Which requests are let in, and when: a fair queue in front of the engines, and a bound on the bodies in
memory.
"""

from proxy.admission.bodies import BodyBudget, BodyLease, weigh
from proxy.admission.gate import Gate
from proxy.admission.lanes import Lanes
from proxy.admission.refusals import ENGINES_FULL
from proxy.admission.ticket import Ticket
from proxy.admission.turns import Admitted

__all__ = ["ENGINES_FULL", "Admitted", "BodyBudget", "BodyLease", "Gate", "Lanes", "Ticket", "weigh"]
