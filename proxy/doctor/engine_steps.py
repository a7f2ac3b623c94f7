"""What an engine says of itself becomes findings. Pure."""

from proxy.connectors.nixl_versions import release
from proxy.doctor.facts import Answer, EngineFacts, Trouble
from proxy.findings import Finding, failed, passed, skipped, warned
from proxy.phases import Role
from proxy.tokenizing.parity import Difference, difference

OLDEST = (0, 32)
"""The oldest release whose behaviour kvproxy was measured on (docs/operating.md, "Is it working?")."""

EVENTS_CONFIG = (
    '--kv-events-config \'{"enable_kv_cache_events": true, "publisher": "zmq",'
    ' "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5657"}\''
)

_SMALLEST_USUAL_BLOCK = 16


def reachable(facts: EngineFacts) -> Finding:
    """Whether the engine answers at all."""
    step, health = "reachable", facts.health
    if health is None:
        return failed(step, "it was not asked in time", "give the doctor more time: --timeout")
    if health.ok:
        return passed(step, f"/health answers in {max(1, round(facts.health_s * 1000))} ms")
    if health.trouble is Trouble.REFUSED:
        tls = "certificate" in health.words or "TLS" in health.words
        remedy = (
            (
                "give --engine-ca the authority that signed its certificate, and name the engine as the "
                "certificate does"
            )
            if tls
            else f"start vLLM there (--port {facts.address.rpartition(':')[2]}, and --host if it is on "
            "another machine), or correct the address; look at firewalls in between"
        )
        return failed(step, f"it cannot be connected to: {health.words}", remedy)
    if health.trouble is Trouble.SILENT:
        return failed(
            step,
            f"it accepts connections and answers nothing: {health.words}",
            (
                "the process is stopped, starved of CPU or still starting: look at its log, and restart it "
                "if it hangs"
            ),
        )
    if health.status is not None and health.status >= 500:
        return failed(
            step, f"/health answers {health.status}: its engine is dead", "look at its log and restart it"
        )
    return failed(step, f"what answers there is no vLLM: {health.words}", "give the address of vLLM's --port")


def version(facts: EngineFacts) -> Finding:
    """Which release the engine is."""
    step, answer = "version", facts.version
    if answer is None or not answer.ok:
        words = answer.words if answer is not None else "not asked"
        return warned(
            step, f"it does not tell its version: {words}", "kvproxy is made for vLLM, which answers /version"
        )
    found = release(answer.value)
    if found is None:
        return passed(step, f"vLLM {answer.value}")
    if found < OLDEST:
        return warned(
            step,
            f"vLLM {answer.value} is older than kvproxy was measured on: prefilled blocks nobody fetches "
            "may stay held until their lease ends",
            "update it to vLLM 0.32 or newer",
        )
    return passed(step, f"vLLM {answer.value}")


def model(facts: EngineFacts, wanted: str) -> Finding:
    """Whether the engine serves the model."""
    step, answer = "model", facts.cards
    if answer is None:
        return skipped(step, "it was not asked")
    if answer.status == 401:
        return failed(
            step,
            "it wants an API key, or another than --engine-api-key-file has (401 for /v1/models)",
            "put the key it was started with (--api-key or VLLM_API_KEY) into a file and give that as"
            " --engine-api-key-file",
        )
    if not answer.ok:
        return failed(step, f"/v1/models: {answer.words}", "give the address of vLLM's --port")
    if facts.serves(wanted):
        length = facts.max_model_len(wanted)
        adapters = sum(bool(card.parent) for card in facts.models)
        more = f", {adapters} adapters" if adapters else ""
        return passed(step, f"serves {wanted!r}" + (f", at most {length} tokens" if length else "") + more)
    served = ", ".join(repr(card.id) for card in facts.models if not card.parent) or "no model"
    return failed(
        step,
        f"serves {served}, not {wanted!r}",
        f"start it with --served-model-name {wanted}, or give kvproxy the --model that all engines serve",
    )


def awake(facts: EngineFacts) -> list[Finding]:
    """Whether the engine is awake; no finding if it cannot be sent to sleep."""
    if facts.asleep is None:
        return []
    if not facts.asleep:
        return [passed("awake", "it does not sleep")]
    return [
        warned(
            "awake",
            "it sleeps: it gets no requests, and was not examined further",
            f"if it is meant to serve, wake it: POST http://{facts.address}/wake_up",
        )
    ]


def event_sources(facts: EngineFacts, *, wanted: bool) -> Finding:
    """Whether it is known where the engine publishes its KV events."""
    step, answer = "event_sources", facts.source_answer
    if not wanted:
        return skipped(step, "--kv-events off: prompts are placed by load")
    if named := facts.spec.event_sources:
        return passed(step, f"named by ?events=: {', '.join(source.endpoint for source in named)}")
    if answer is None:
        return skipped(step, "it was not asked")
    blind = "nothing is known of its cache, so prompts are placed there by load alone"
    report = warned if facts.spec.role is Role.DECODE else failed
    if not answer.ok:
        where = f"-{facts.spec.role[0]}" if facts.spec.role is not Role.BOTH else "--both"
        name_them = (
            f"name its sources: {where}"
            f" '{facts.address}?events=tcp://{facts.spec.host}:5557&replay=tcp://{facts.spec.host}:5657'"
        )
        if answer.trouble is Trouble.BROKEN:
            words = f"its answer to /kv_event_sources is not understood: {answer.words}; {blind}"
            return report(
                step, words, f"{name_them}; it may be a vLLM newer than this kvproxy: tell us its version"
            )
        if answer.trouble is Trouble.NOT_ALLOWED:
            words = f"what it tells of its event sources is not followed: {answer.words}; {blind}"
            return report(step, words, f"{name_them}, or allow it with --events-bind or --allow-instances")
        return report(
            step,
            f"/kv_event_sources: {answer.words}; {blind}",
            f"update vLLM to 0.32 or newer, or {name_them}",
        )
    if not answer.value:
        return report(step, f"it publishes no KV events; {blind}", f"start it with {EVENTS_CONFIG}")
    ranks = len(answer.value)
    where = ", ".join(source.endpoint for source in answer.value)
    return passed(step, f"{ranks} rank{'s' if ranks > 1 else ''}: {where}")


def prefix_caching(facts: EngineFacts) -> Finding:
    """Whether the engine keeps what it has computed."""
    step, on = "prefix_caching", facts.prefix_caching
    if on is None:
        reported = [send.reported for rank in facts.ranks for send in rank.sends[1:] if send.reported]
        if reported:
            return passed(step, "a prompt that is sent twice is found in its cache")
        return skipped(step, "its metrics do not tell")
    if on:
        return passed(step, "on")
    report = warned if facts.spec.role is Role.DECODE else failed
    return report(
        step,
        "it keeps nothing of the prompts it has computed",
        "start it without --no-enable-prefix-caching (some kinds of models need --enable-prefix-caching)",
    )


def block_size(facts: EngineFacts, model_name: str) -> Finding:
    """Whether a prompt can fill blocks at all."""
    step, size = "block_size", facts.block_size
    if size is None:
        return skipped(step, "neither its events nor its metrics tell")
    by_metrics = facts.metrics.value.block_size if facts.metrics is not None and facts.metrics.ok else None
    sizes = sorted({rank.block_size for rank in facts.ranks if rank.block_size})
    length = facts.max_model_len(model_name)
    if length is not None and length <= size:
        return failed(
            step,
            f"{size} tokens: no prompt of at most {length} tokens fills a block before its last token, so"
            " nothing is ever found in its cache",
            "start it with a smaller --block-size"
            + (", for example 16" if size > _SMALLEST_USUAL_BLOCK else ", or a larger --max-model-len"),
        )
    if len(sizes) > 1:
        return failed(
            step,
            f"its ranks differ: {', '.join(map(str, sizes))} tokens",
            "give all ranks of an engine the same --block-size",
        )
    differs = f" (events; its metrics say {by_metrics})" if sizes and by_metrics not in {None, size} else ""
    return passed(step, f"{size} tokens{differs}")


def tokenizer(facts: EngineFacts, directory: str | None) -> Finding:
    """Whether prompts become the same tokens here and in the engine."""
    step, theirs = "tokenizer", facts.tokenized
    if theirs is None:
        if directory is None:
            return failed(
                step,
                "its /tokenize does not answer, so no prompt's tokens are known",
                "give kvproxy the model's files: --tokenizer DIRECTORY",
            )
        return warned(
            step,
            f"its /tokenize does not answer, so {directory} cannot be compared with it",
            "make /tokenize reachable: kvproxy uses its own tokenizer only where engines agree",
        )
    if directory is None or facts.tokenized_here is None:
        return passed(step, "its /tokenize is asked")
    off = differences(facts.tokenized_here, theirs)
    if not off:
        return passed(step, f"{directory} renders every kind of prompt as it does")
    kind, found = next(iter(off.items()))
    return warned(
        step,
        f"it renders {', '.join(off)} prompts otherwise than {directory} ({kind}, token {found.at}: "
        f"{_token(found.ours)} here, {_token(found.theirs)} there); kvproxy asks engines about them, which "
        "is slower",
        "give --tokenizer the files the engine was started with; compare its --tokenizer, --chat-template and"
        " --default-chat-template-kwargs",
    )


def differences(
    ours: dict[str, list[list[int] | None]], theirs: dict[str, list[list[int] | None]]
) -> dict[str, Difference]:
    """The kinds of prompts that are rendered differently, each with its first difference."""
    found: dict[str, Difference] = {}
    for kind, mine in ours.items():
        for a, b in zip(mine, theirs.get(kind, []), strict=False):
            if (off := difference(a, b)) is not None:
                found.setdefault(kind, off)
    return found


def _token(token: int | None) -> str:
    return "none" if token is None else str(token)


def unfinished(facts: EngineFacts, limit_s: float) -> list[Finding]:
    """The finding that time was up before all steps were done."""
    if not facts.unfinished:
        return []
    words = f"not all of it was looked at within {limit_s:g} s"
    return [
        failed("time", words, "give the doctor more time (--timeout), or look at fewer instances at once")
    ]


def refused_words(answer: Answer) -> str:
    """Trouble in words."""
    return answer.words or "no answer"
