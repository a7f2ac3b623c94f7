"""Stand-in engines: all that kvproxy and its tests can notice of a vLLM engine, without a model.

`EngineModel` is the engine (block pool, scheduler, latency, holds) with neither sockets nor clock. `StandIn`
puts it behind the sockets of a real one. `python -m proxy.simulation` runs it.

`replay` lets whole fleets of such engines serve a workload in simulated time, by the same rules, and
`report` makes a page of what comes of it. `planning` looks for the fleet that carries most.
"""

from proxy.simulation.api.routes import ROUTES, GeneratingRoute
from proxy.simulation.engine.engine import EngineModel
from proxy.simulation.engine.values import EngineShape
from proxy.simulation.live.config import StandInConfig
from proxy.simulation.live.faults import Fault
from proxy.simulation.live.publisher import EventForm
from proxy.simulation.live.stand_in import StandIn

__all__ = [
    "ROUTES",
    "EngineModel",
    "EngineShape",
    "EventForm",
    "Fault",
    "GeneratingRoute",
    "StandIn",
    "StandInConfig",
]
