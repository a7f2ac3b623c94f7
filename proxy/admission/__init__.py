"""Who is let in when: a fair queue in front of the engines, and a bound on the bodies in memory."""

from proxy.admission.bodies import BodyBudget, BodyLease, weigh
from proxy.admission.gate import ENGINES_FULL, Admitted, Gate
from proxy.admission.ticket import Ticket

__all__ = ["ENGINES_FULL", "Admitted", "BodyBudget", "BodyLease", "Gate", "Ticket", "weigh"]
