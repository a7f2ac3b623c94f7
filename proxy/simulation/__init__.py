"""Stand-in engines: what kvproxy and its tests can notice of a vLLM engine, without a model.

`EngineModel` is the engine - block pool, scheduler, latency, holds - with neither sockets nor clock.
`StandIn` puts it behind the sockets of a real one. `python -m proxy.simulation` runs it.
"""

from proxy.simulation.config import StandInConfig
from proxy.simulation.engine import EngineModel
from proxy.simulation.engine_values import EngineShape
from proxy.simulation.faults import Fault
from proxy.simulation.live import StandIn
from proxy.simulation.publisher import EventForm

__all__ = ["EngineModel", "EngineShape", "EventForm", "Fault", "StandIn", "StandInConfig"]
