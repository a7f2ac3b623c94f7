"""Engine models driven by hand, in steps instead of seconds."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kvevents import Event
from proxy.simulation import EngineModel, EngineShape
from proxy.simulation.engine.request import Request, Sampling
from proxy.simulation.engine.text import Voice
from proxy.simulation.engine.values import Handshake, Output, Pull, Release

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
EOS = 2
PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}


def model(name: str = "engine-1", **shape: Any) -> EngineModel:
    fields = {"block_size": 4, "blocks": 32, "max_model_len": 1000, **shape}
    return EngineModel(EngineShape(**fields), Voice(range(300, 4000), EOS), name, ("host", 1))


def request(name: str, tokens: Iterable[int], max_tokens: int = 1, **fields: Any) -> Request:
    sampling = Sampling(max_tokens=max_tokens, **fields.pop("sampling", {}))
    return Request(id=name, tokens=list(tokens), sampling=sampling, arrived_s=0.0, **fields)


def step(engine: EngineModel, now_s: float = 0.0) -> list[Output]:
    """One step, which must do something."""
    begun = engine.begin_step(now_s)
    assert begun is not None
    return engine.end_step(begun, now_s)


def run(engine: EngineModel, *requests: Request, now_s: float = 0.0) -> list[Event]:
    """Serve requests to their end; the events they caused."""
    for one in requests:
        engine.add(one)
    while engine.unfinished:
        step(engine, now_s)
    return engine.take_events()


def prefill(engine: EngineModel, name: str, tokens: Sequence[int], now_s: float = 0.0) -> dict[str, Any]:
    """A prefill leg; the `kv_transfer_params` it hands on."""
    engine.add(request(name, tokens, hold=True))
    params: list[dict[str, Any] | None] = []
    while engine.unfinished:
        params += [output.params for output in step(engine, now_s) if output.params]
    assert len(params) == 1
    assert params[0] is not None
    return params[0]


def carry(source: EngineModel, target: EngineModel, now_s: float = 0.0) -> list[type]:
    """Carry what `target` asks of `source` over; the kinds of its commands."""
    commands = target.take_commands(now_s)
    for command in commands:
        if isinstance(command, Pull):
            target.pulled(command.request_id, source.serve_pull(command.remote.request_id, command.blocks))
        elif isinstance(command, Handshake):
            target.peers.met(command.remote.engine_id)
        elif isinstance(command, Release):
            source.serve_release(command.remote.request_id)
        else:
            source.holds.heartbeat([command.remote.request_id], now_s)
    return [type(command) for command in commands]


def decode(
    source: EngineModel,
    target: EngineModel,
    leg: Request,
    between: Callable[[], None] = lambda: None,
) -> list[int]:
    """A decode leg pulling from `source`; the tokens that come out."""
    target.add(leg)
    assert step(target) == []
    between()
    carry(source, target)
    while not leg.status.finished:
        step(target)
    return list(leg.output)


def say(engine: EngineModel, tokens: Sequence[int], count: int = 8, **fields: Any) -> list[int]:
    """What an engine that computes everything itself answers."""
    leg = request("plain", tokens, count, **fields)
    run(engine, leg)
    return list(leg.output)
