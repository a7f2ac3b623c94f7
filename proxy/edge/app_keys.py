"""What handlers find in the application: each collaborator under a typed key."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from proxy.admission import BodyBudget, Gate
from proxy.caches.accuracy import Accuracy
from proxy.config import Config
from proxy.descriptors import Descriptors
from proxy.edge.access.client_salts import ClientSalts
from proxy.fleet.instances import Fleet
from proxy.observability.metrics import Metrics
from proxy.request.dialects import Dialect
from proxy.request.discarding import Discarding
from proxy.serving.director import Director
from proxy.serving.healing import Healing
from proxy.snapshots.keeper import StateKeeper
from proxy.tokenizing import PromptTokenizer
from proxy.watching.adapters import Adapters
from proxy.watching.membership.admin import AdminMembership
from proxy.watching.watch import FleetWatch

CONFIG: web.AppKey[Config] = web.AppKey("config", Config)
DIRECTOR: web.AppKey[Director] = web.AppKey("director", Director)
FLEET: web.AppKey[Fleet] = web.AppKey("fleet", Fleet)
ACCURACY: web.AppKey[Accuracy] = web.AppKey("accuracy", Accuracy)
WATCH: web.AppKey[FleetWatch] = web.AppKey("watch", FleetWatch)
ADAPTERS: web.AppKey[Adapters] = web.AppKey("adapters", Adapters)
GATE: web.AppKey[Gate] = web.AppKey("gate", Gate)
BODIES: web.AppKey[BodyBudget] = web.AppKey("bodies", BodyBudget)
DESCRIPTORS: web.AppKey[Descriptors] = web.AppKey("descriptors", Descriptors)
DISCARDING: web.AppKey[Discarding] = web.AppKey("discarding", Discarding)
READER: web.AppKey[ThreadPoolExecutor] = web.AppKey("reader", ThreadPoolExecutor)
"""The one thread that reads large bodies: what reading takes in passing, many times a body's size, it takes once."""
SALTS: web.AppKey[ClientSalts] = web.AppKey("salts", ClientSalts)
"""Set if engines get salts that differ by client."""
TOKENIZER: web.AppKey[PromptTokenizer] = web.AppKey("tokenizer", PromptTokenizer)
SPOKEN: web.AppKey[Sequence[Dialect]] = web.AppKey("dialects", Sequence[Dialect])
"""The generating routes that are served."""
STATE: web.AppKey[StateKeeper] = web.AppKey("state", StateKeeper)
"""What outlives the process; absent without --state-dir."""
MEMBERSHIP: web.AppKey[AdminMembership] = web.AppKey("membership", AdminMembership)
HEALING: web.AppKey[Healing] = web.AppKey("healing", Healing)
METRICS: web.AppKey[Metrics] = web.AppKey("metrics", Metrics)
DRAINING: web.AppKey[asyncio.Event] = web.AppKey("draining", asyncio.Event)
"""Set once the process is to end soon: nobody should send anything new, and what comes is served all the same."""
STOPPING: web.AppKey[asyncio.Event] = web.AppKey("stopping", asyncio.Event)
"""Set once the process is ending."""
