"""`assemble` puts all of kvproxy below the edge together; whatever has a lifetime is opened and closed here,
in order.

There is no HTTP of clients here: the edge, a test or a simulation drives a `Service` alike.
"""

import asyncio
import contextlib
import logging
import resource
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from kvevents import BlockHasher, PrefixIndex
from proxy.admission import BodyBudget, Gate
from proxy.caches.accuracy import Accuracy
from proxy.caches.address_rules import AddressRules
from proxy.caches.believing import Believing
from proxy.caches.event_happenings import Telling
from proxy.caches.feeds import EventFeeds
from proxy.caches.shown import AccuracyShown
from proxy.config import AllowedInstances, Config, Rules, WhenNoPrefill
from proxy.connectors import Connector, load_connector
from proxy.descriptors import Descriptors, open_descriptors
from proxy.doctor import Doctor
from proxy.errors import ConfigError
from proxy.fleet import Fleet
from proxy.happenings import Answered, Consumer, Tell
from proxy.latency.fits import PoolName
from proxy.latency.learner import LatencyLearner
from proxy.latency.model import LatencyModel
from proxy.latency.profiles import load_profile
from proxy.latency.shown import LatencyShown, latency_shown
from proxy.observability.access_log import write_line
from proxy.observability.decision_log import DecisionLog, sampled
from proxy.observability.fleet import FleetCollector
from proxy.observability.latency import LatencyCollector
from proxy.observability.metrics import Metrics
from proxy.observability.predictions import AccuracyCollector
from proxy.observability.process import TaskCollector, show_connections
from proxy.observability.record_files import RecordFiles, file_named
from proxy.observability.recorder import Recorder
from proxy.observability.requests import show_requests
from proxy.observability.series import Series
from proxy.observability.snapshots import StateCollector
from proxy.observability.telling import FailureCollector, Happenings
from proxy.request.discarding import Discarding
from proxy.scheduling.placement import Placement
from proxy.scheduling.policies import load_policy
from proxy.scheduling.types import AnyPolicy, reads_latency
from proxy.serving.director import Director
from proxy.serving.healing import Healing
from proxy.serving.stored import StoredResponses
from proxy.serving.waits import ABANDONED_PREFILL_GRACE_S, WAITS, Waits
from proxy.snapshots.directory import StateDirectory
from proxy.snapshots.keeper import StateKeeper
from proxy.snapshots.learned import FileKeeper, KeptFile
from proxy.tasks import TaskOwner
from proxy.tokenizing import PromptTokenizer, configured_tokenizer
from proxy.tuning import TUNING, Tuning
from proxy.upstream.client import EngineClient
from proxy.watching.adapters import Adapters
from proxy.watching.membership.admin import AdminMembership
from proxy.watching.membership.base import MembershipSource
from proxy.watching.membership.configured import Configured
from proxy.watching.membership.kept import Kept
from proxy.watching.membership.registry import used_sources
from proxy.watching.scrapes import Scrapes
from proxy.watching.watch import FleetWatch

log = logging.getLogger(__name__)

CLEANUP_S = ABANDONED_PREFILL_GRACE_S + 3.0
"""How long closing the service waits for the last requests' holds to be released: for prefill legs that still
run, and then for the releases."""


class Service:
    """All of kvproxy below its HTTP edge. It serves while `running` is entered, once."""

    def __init__(
        self,
        config: Config,
        policy: AnyPolicy,
        connector: Connector,
        sources: Sequence[MembershipSource],
        waits: Waits,
        tuning: Tuning,
        consumers: Sequence[Consumer],
        series: Sequence[Series],
    ) -> None:
        """Use `assemble`. Raises ConfigError."""
        clock = time.monotonic
        self.config = config
        self.rules = Rules(config)
        self.draining, self.stopping = asyncio.Event(), asyncio.Event()
        """`draining`: the process is to end soon, and clients should go elsewhere, but are still served.
        `stopping`: it is ending."""

        local = configured_tokenizer(config.tokenizer)  # first: a mistyped name must not leave a directory

        # -- what outlives the process; missing without --state-dir
        state = config.state
        self.directory = StateDirectory(state.state_dir) if state.state_dir is not None else None
        self.kept = _kept(config, self.directory, tuning) if self.directory is not None else None

        # -- what is known of the engines
        self.index = PrefixIndex(BlockHasher(self.directory.secret) if self.directory is not None else None)
        self.fleet = Fleet(decode_alone=config.admission.when_no_prefill is WhenNoPrefill.DECODE)
        self.accuracy = Accuracy(
            self.index.holds,
            upper_bound=self.index.upper_bound,
            settle_s=tuning.settle_s,
            rebuild_first_s=tuning.rebuild_first_s,
        )
        self.index.listen(self.accuracy.removed)
        profile = load_profile(config.latency_profile)
        self.latency = LatencyModel(profile) if reads_latency(policy) else None
        """How long engines take; None unless the policy reads it: then nobody learns it."""
        self.learned = _learned(config, self.directory, self.latency)
        self.responses = StoredResponses()
        self.responses_kept = _responses_kept(config, self.directory, self.responses)
        self.learner = LatencyLearner(self.latency, self._pool_of) if self.latency is not None else None
        self.placement = Placement(
            self.fleet,
            self.index,
            policy,
            config.policy,
            clock=clock,
            limits=config.admission,
            accuracy=self.accuracy,
            tier_costs=config.tier_costs,
            prompts_wanted=config.recordings.record is not None,
            latency=self.latency,
            logs=_logs(config),
            bypass_tokens=lambda: self.rules.now.bypass_tokens,
        )

        # -- what is told, and who hears it
        self.happenings = Happenings()
        self.tell = tell = self.happenings.tell
        self.registry = CollectorRegistry()
        for collector in (GCCollector, PlatformCollector, ProcessCollector):
            collector(registry=self.registry)
        self.registry.register(FleetCollector(self.fleet, self.index))
        self.registry.register(AccuracyCollector(self.fleet, self.accuracy))
        if self.latency is not None:
            self.registry.register(LatencyCollector(self.fleet, self.latency))
        self.registry.register(TaskCollector())
        self.registry.register(FailureCollector(self.happenings))

        def known(address: str) -> bool:
            return self.fleet.get(address) is not None

        self.metrics = Metrics(self.registry, self.happenings, known)
        for each in series:
            self.metrics.add(each)
        self.happenings.listen(Answered, write_line, "access log")
        for consumer in (*filter(None, (self.learner,)), *consumers):
            self.happenings.add(consumer)
        self.recorder = _recorder(config, tell)
        if self.recorder is not None:
            self.happenings.add(self.recorder)
        self.decision_log = _decision_log(config, tell)
        if self.decision_log is not None:
            self.happenings.add(self.decision_log)

        # -- what is bounded
        self.descriptors = Descriptors(
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            open_now=open_descriptors,
            clock=clock,
            tell=tell,
            with_operators=config.security.admin_port is not None,
        )
        show_connections(
            self.registry,
            clients=lambda: self.descriptors.connections,
            operators=lambda: self.descriptors.operators,
            engines=lambda: self.descriptors.legs,
        )
        self.bodies = BodyBudget(config.admission.max_bodies_mb << 20)
        self.discarding = Discarding()
        self.reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
        """The one thread that reads large bodies. Reading takes many times a body's size in memory, so only
        one is read at a time."""
        self.long_bodies = asyncio.Lock()
        """Held by the request whose long body is read in this turn of the event loop."""
        self.gate = Gate(
            fleet=self.fleet,
            placement=self.placement,
            rules=self.rules,
            tell=tell,
            clock=clock,
        )
        show_requests(
            self.registry,
            queued=lambda: len(self.gate),
            held_back=lambda: self.gate.clients_held_back,
            body_bytes=lambda: self.bodies.held_bytes,
        )
        self.snapshots: StateKeeper | None = None
        if self.directory is not None and config.kv_events:
            self.snapshots = StateKeeper(
                self.directory,
                self.index,
                tell,
                interval_s=state.state_interval_s,
                instances=lambda: [instance.address for instance in self.fleet],
                trusted=self.accuracy.trusted,
                read_s=tuning.read_snapshot_s,
                last_s=tuning.last_snapshots_s,
                unclaimed_s=tuning.unclaimed_s,
            )
            self.registry.register(StateCollector(self.snapshots))

        # -- what speaks to engines
        self._feed_tasks, self._leg_tasks = TaskOwner("events"), TaskOwner("legs")
        self._scrape_tasks = TaskOwner("gauges")
        self.client = EngineClient(
            engine_api_key=config.engine_api_key,
            engine_ca=config.security.engine_ca,
            connect_timeout_s=config.deadlines.connect_s,
            descriptors=self.descriptors,
            name_fresh_s=tuning.name_fresh_s,
            resolver_silent_s=tuning.resolver_silent_s,
        )
        self.feeds = (
            EventFeeds(
                self.client,
                self.index,
                Telling(tell),
                self._feed_tasks,
                rules=AddressRules.of(config),
                ask_timeout_s=config.health.timeout_s,
                snapshots=self.snapshots,
            )
            if config.kv_events
            else None
        )
        self.watch = FleetWatch(
            self.rules,
            self.fleet,
            self.client,
            self.feeds,
            tell,
            forget=self._lost_its_cache,
            gone_s=tuning.gone_s,
            look_every_s=tuning.look_every_s,
            silent_s=tuning.silent_s,
        )
        self.scrapes = (
            Scrapes(
                self.fleet,
                self.client,
                self._scrape_tasks,
                clock,
                every_s=config.scrape_s,
                timeout_s=config.health.timeout_s,
                told=self.learner.scraped,
            )
            if self.learner is not None and config.scrape_s
            else None
        )
        self.membership = AdminMembership(config, self.fleet, self.watch, self.client, self.kept, clock)
        drained = self.kept.restored.drained if self.kept is not None else ()
        self._sources: Sequence[MembershipSource] = (
            Configured(config.instances, drained=drained),
            self.membership,
            *sources,
        )
        self.adapters = Adapters(
            self.fleet,
            self.client,
            config.model,
            clock,
            list_s=tuning.list_s,
            list_again_s=tuning.list_again_s,
        )
        self.tokenizer = PromptTokenizer(
            self.fleet,
            self.client,
            clock=clock,
            local=local,
            look_for_local=config.tokenizer == "auto",
            tell=tell,
            memory=self.bodies,
            limits=tuning.prompts,
            learning_waits=tuning.learning,
        )
        self.healing = Healing(self.fleet, self.index, tell, clock)
        self.director = Director(
            fleet=self.fleet,
            placement=self.placement,
            gate=self.gate,
            connector=connector,
            tokenizer=self.tokenizer,
            client=self.client,
            watch=self.watch.legs,
            tell=tell,
            tasks=self._leg_tasks,
            clock=clock,
            lease_s=config.kv_lease_s,
            rules=self.rules,
            healing=self.healing,
            waits=waits,
        )
        self.doctor = Doctor(config, self.client, connector, service=_Known(self.fleet, self.accuracy))

    def _pool_of(self, address: str) -> PoolName | None:
        """The instances that take as long as this one, as far as is known; None if it is not there."""
        instance = self.fleet.get(address)
        return PoolName(instance.role, self.config.model) if instance is not None else None

    def _lost_its_cache(self, address: str) -> None:
        """An instance has lost its cache, with its process or in its sleep, or has left."""
        self.placement.forget(address)
        if self.learner is not None:
            self.learner.restarted(address)

    def latency_status(self) -> LatencyShown | None:
        """For `/status`."""
        if self.latency is None:
            return None
        restored = self.learned is not None and self.learned.restored
        return latency_shown(self.latency.fitted(), self.config.latency_profile, restored=restored)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A context in which the service runs: all parts are opened, and closed in the opposite order,
        whatever happens inside.

        `watch.fatal` says meanwhile if the process should end instead.
        """
        try:
            async with self.client:
                try:
                    self._start()
                    yield
                finally:
                    await self._close()
        finally:
            self.reader.shutdown(wait=False)

    def _start(self) -> None:
        if self.snapshots is not None:
            self.snapshots.start()
        self.watch.start(self._sources)
        if self.feeds is not None:
            believing = Believing(self.fleet, self.accuracy, self.feeds, time.monotonic)
            self._feed_tasks.create(believing.keep_looking(), name="accuracy")
        self.tokenizer.start()
        for keeper in (self.learned, self.responses_kept):
            if keeper is not None:
                keeper.start()
        if self.scrapes is not None:
            self._scrape_tasks.create(self.scrapes.keep_asking(), name="round")

    async def _close(self) -> None:
        """Close all parts, whether they were started or not."""
        await self.doctor.close(CLEANUP_S)
        await self._leg_tasks.drained(CLEANUP_S)
        await self._leg_tasks.close()
        await self._scrape_tasks.close()
        await self.tokenizer.close()
        await self.adapters.close()
        for keeper in (self.learned, self.responses_kept):
            if keeper is not None:
                await keeper.close()
        if self.kept is not None:
            await self.kept.close(alone=self.snapshots is None)
        if self.snapshots is not None:
            await self.snapshots.close()
        await self.watch.close()
        await self._feed_tasks.close()
        if self.feeds is not None:
            self.feeds.close()
        for log_file in (self.recorder, self.decision_log):
            if log_file is not None:
                await log_file.close()


def assemble(
    config: Config,
    policy: AnyPolicy | None = None,
    sources: Sequence[MembershipSource] = (),
    waits: Waits = WAITS,
    connector: Connector | None = None,
    tuning: Tuning = TUNING,
    consumers: Sequence[Consumer] = (),
    series: Sequence[Series] = (),
) -> Service:
    """The service of `config`. Opens no socket. Raises ConfigError.

    `policy` and `connector` replace the configured ones. `sources`: name instances beside flags, operators
    and what `config.membership` asks for. `waits`: how long requests wait where that is no setting; `tuning`:
    other figures that are no settings. `consumers`: hear happenings, beside the metrics and the access log;
    the caller closes them once the service is closed. `series`: metrics beside kvproxy's own.
    """
    sources = [*used_sources(config), *sources]
    if connector is None:
        connector = load_connector(config.connector)
    if policy is None:
        policy = load_policy(config.policy)
    else:
        config = msgspec.structs.replace(config, policy=type(policy).__name__)
    config = msgspec.structs.replace(config, connector=connector.name)
    return Service(config, policy, connector, sources, waits, tuning, consumers, series)


def _kept(config: Config, directory: StateDirectory, tuning: Tuning) -> Kept:
    allowed = AllowedInstances(config.security.allow_instances)
    restricted = bool(config.security.allow_instances)
    return Kept(
        directory,
        config.model,
        config.instances,
        lambda spec: allowed.why_not(spec) if restricted else None,
        write_s=tuning.write_instances_s,
    )


def _responses_kept(
    config: Config, directory: StateDirectory | None, responses: StoredResponses
) -> FileKeeper | None:
    if directory is None:
        return None
    return FileKeeper(
        KeptFile.responses(directory),
        state=responses.state,
        restore=responses.restore,
        interval_s=config.state.state_interval_s,
    )


def _learned(
    config: Config, directory: StateDirectory | None, model: LatencyModel | None
) -> FileKeeper | None:
    if directory is None or model is None:
        return None
    interval_s = config.state.state_interval_s
    file = KeptFile.learned(directory, config.model)
    return FileKeeper(file, state=model.state, restore=model.restore, interval_s=interval_s)


def _recorder(config: Config, tell: Tell) -> Recorder | None:
    wanted = config.recordings
    if wanted.record is None:
        return None
    files = RecordFiles(file_named("--record", wanted.record), wanted.record_mb << 20, wanted.record_files)
    files.check()
    return Recorder(files, tell)


def _decision_log(config: Config, tell: Tell) -> DecisionLog | None:
    wanted = config.recordings
    if wanted.decision_log is None:
        return None
    flag = "--decision-log"
    path = file_named(flag, wanted.decision_log)
    if wanted.record is not None and path.resolve() == file_named("--record", wanted.record).resolve():
        raise ConfigError(f"{flag} {wanted.decision_log}: --record writes there, name another file")
    files = RecordFiles(path, wanted.decision_log_mb << 20, wanted.decision_log_files, flag=flag)
    files.check()
    return DecisionLog(files, tell)


def _logs(config: Config) -> Callable[[], bool]:
    """Whether the next decision is logged."""
    wanted = config.recordings
    return sampled(0.0 if wanted.decision_log is None else wanted.decision_log_share)


class _Known:
    """What the doctor may ask of the running service."""

    def __init__(self, fleet: Fleet, accuracy: Accuracy) -> None:
        self._fleet = fleet
        self._accuracy = accuracy

    def index_state(self, address: str, rank: int) -> str:
        """How well the cache of a rank is known: `exact`, `partial` or `unknown`."""
        instance = self._fleet.get(address)
        return instance.index_state(rank) if instance is not None else "unknown"

    def accuracy(self, address: str, rank: int) -> AccuracyShown:
        """How right predictions for a rank were."""
        return self._accuracy.status(address, rank)
