"""Arguments become a StandInConfig; the process serves until a signal, or until a request kills the
engine.
"""

import argparse
import asyncio
import contextlib
import pathlib
import signal
import sys
from collections.abc import Sequence

from proxy.errors import ConfigError
from proxy.latency.profiles import read_profile
from proxy.simulation.engine.latency import PROFILES, Linear, Profile
from proxy.simulation.live.config import VERSION, StandInConfig
from proxy.simulation.live.publisher import EventForm
from proxy.simulation.live.stand_in import StandIn

_ROLES = ("prefill", "decode", "both", "plain")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    ap = argparse.ArgumentParser(
        prog="python -m proxy.simulation", description="A stand-in for one vLLM engine."
    )
    add = ap.add_argument
    add("--port", type=int, default=8100)
    add("--host", default="127.0.0.1")
    add("--model", default="tiny", help="served model name")
    add("--root", metavar="PATH", help="the model's directory, as /v1/models tells it")
    add("--vllm-version", default=VERSION, metavar="V", help="the release it says it is")
    add("--lora", action="append", default=[], metavar="NAME", help="an adapter to serve; may be repeated")
    add("--responses-store", action="store_true", help="responses are stored, to be fetched and built upon")
    add("--lora-updates", action="store_true", help="adapters can be loaded and unloaded under way")
    add(
        "--role",
        choices=_ROLES,
        default="both",
        help="plain: no KV connector; the others behave alike, as in vLLM",
    )
    add("--hash-seed", default="", help="engines with different seeds name the same content differently")
    add("--ranks", type=int, default=1, help="data-parallel ranks")

    cache = ap.add_argument_group("cache and scheduler").add_argument
    cache("--block-size", type=int, default=16, help="tokens in a block")
    cache("--blocks", type=int, default=4096, help="blocks of a rank, the placeholder block 0 included")
    cache("--no-prefix-caching", action="store_true", help="nothing is kept of a prompt")
    cache(
        "--lookahead",
        type=int,
        default=0,
        metavar="TOKENS",
        help="tokens behind a block that its hash covers, as with EAGLE; with --role plain only",
    )
    cache("--max-model-len", type=int, default=8192)
    cache("--max-num-batched-tokens", type=int, default=2048)
    cache("--max-num-seqs", type=int, default=256)
    cache("--max-loras", type=int, default=1, help="adapters in one batch")
    cache("--max-num-queued-reqs", type=int, help="unfinished requests; one more is refused with 503")
    cache(
        "--max-num-queued-tokens", type=int, help="tokens being prefilled; at so many all is refused with 503"
    )
    cache(
        "--profile",
        type=_profile,
        default="zero",
        metavar="NAME|FILE",
        help=f"how long an engine takes: {', '.join(PROFILES)}, or as a file of `kvproxy fit` has it",
    )
    cache(
        "--eos-every", type=int, default=0, help="answers end by themselves after that many tokens on average"
    )

    events = ap.add_argument_group("KV events").add_argument
    events("--events", type=int, help="port to publish events on")
    events("--replay", type=int, help="port of the replay socket")
    events(
        "--events-connect", metavar="ADDRESS", help="connect the publisher there instead of binding a port"
    )
    events("--topic", default="kv-events")
    events(
        "--sources-form",
        choices=("object", "array", "other"),
        default="object",
        help="how /kv_event_sources tells them",
    )
    events("--buffer-steps", type=int, default=10_000, help="batches kept for replays")
    events("--event-arrays", action="store_true", help="events as arrays, as before vLLM 0.24")
    events("--bytes-hashes", action="store_true", help="hashes as 32 bytes instead of 64-bit integers")

    events("--foreign-events", action="store_true", help="events of types nobody knows")
    events("--clock-offset-s", type=float, default=0.0, help="how far the clock of events is ahead")

    nixl = ap.add_argument_group("KV transfer").add_argument
    nixl("--side-port", type=int, default=0, help="port other engines pull from")
    nixl("--lease-s", type=float, default=30.0, help="seconds a prefilled prompt is held")
    nixl("--recompute", action="store_true", help="compute a prompt whose pull failed, instead of an error")
    nixl(
        "--lucky-reads",
        action="store_true",
        help="a hold that is over reads right until its blocks are reused",
    )

    answers = ap.add_argument_group("answers").add_argument
    answers("--greeting", default="", help="what the chat template puts before every conversation")
    answers(
        "--tool-parser", action="store_true", help="chats with tools that may or must be called are taken"
    )
    answers(
        "--excludes-tools", action="store_true", help="tools that must not be called are left out of prompts"
    )
    answers("--images", action="store_true", help="chats with images are taken")
    answers("--no-docs", action="store_true", help="no /openapi.json")
    answers("--api-key", metavar="KEY", help="wanted for all of /v1")
    answers("--no-prompt-tokens-details", action="store_true", help="usage without cached tokens")
    answers("--request-id-headers", action="store_true", help="answers with X-Request-Id")
    answers("--load-tracking", action="store_true", help="/load counts")
    answers("--request-metrics", action="store_true", help="answers with timings")
    answers("--admin", type=int, metavar="PORT", help="port of /faults: how to make this engine go wrong")
    return ap


def _profile(named: str) -> Profile:
    if named in PROFILES:
        return PROFILES[named]
    try:
        return Linear.of(read_profile(pathlib.Path(named), "--profile", PROFILES))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def config_of(args: argparse.Namespace) -> StandInConfig:
    """The configuration that the arguments describe."""
    return StandInConfig(
        port=args.port,
        host=args.host,
        model=args.model,
        root=args.root,
        loras=tuple(args.lora),
        lora_updates=args.lora_updates,
        responses_store=args.responses_store,
        connector=args.role != "plain",
        ranks=args.ranks,
        block_size=args.block_size,
        blocks=args.blocks,
        max_model_len=args.max_model_len,
        max_batched_tokens=args.max_num_batched_tokens,
        max_sequences=args.max_num_seqs,
        max_loras=args.max_loras,
        max_queued_requests=args.max_num_queued_reqs,
        max_queued_tokens=args.max_num_queued_tokens,
        profile=args.profile,
        eos_every=args.eos_every,
        prefix_caching=not args.no_prefix_caching,
        hash_seed=args.hash_seed,
        lookahead=args.lookahead,
        version=args.vllm_version,
        lease_s=args.lease_s,
        recompute=args.recompute,
        lucky_reads=args.lucky_reads,
        side_port=args.side_port,
        events=args.events,
        replay=args.replay,
        events_connect=args.events_connect,
        topic=args.topic,
        sources_form=args.sources_form,
        buffer_steps=args.buffer_steps,
        event_form=EventForm(
            arrays=args.event_arrays, bytes_hashes=args.bytes_hashes, foreign=args.foreign_events
        ),
        clock_offset_s=args.clock_offset_s,
        greeting=args.greeting,
        tool_parser=args.tool_parser,
        excludes_tools=args.excludes_tools,
        images=args.images,
        docs=not args.no_docs,
        api_key=args.api_key,
        prompt_tokens_details=not args.no_prompt_tokens_details,
        request_metrics=args.request_metrics,
        load_tracking=args.load_tracking,
        request_id_headers=args.request_id_headers,
        admin=args.admin,
    )


async def serve(config: StandInConfig) -> bool:
    """Serve until SIGINT or SIGTERM; False if the engine died before that."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with StandIn(config) as engine:
        sys.stdout.write(f"stand-in {config.model} on {engine.url}\n")
        sys.stdout.flush()
        waits = [loop.create_task(stop.wait()), loop.create_task(engine.ended.wait())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return stop.is_set()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stand-in; the exit status is 1 if a request killed it."""
    config = config_of(parser().parse_args(argv))
    run = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop  # noqa: PLC0415  # absent on Windows; the standard loop does as well

        run = uvloop.run
    return 0 if run(serve(config)) else 1


if __name__ == "__main__":
    sys.exit(main())
