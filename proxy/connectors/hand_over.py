"""Whether KV went over a pair that was tried, as any connector judges it; each adds words and remedies.
Pure.
"""

from proxy.connectors.seen import LegEnd, TriedPair
from proxy.findings import Finding, failed, passed, warned

STEP = "hand_over"


def judged(
    tried: TriedPair, *, unreachable: str, itself: tuple[str, str], partial_block_too: bool = False
) -> Finding:
    """The finding about a pair whose legs were sent.

    `unreachable`: the remedy if the decode leg fails. `itself`: the reason why the decode engine computes the
    prompt itself, as the end of a sentence, and the remedy. `partial_block_too`: whether KV of the prompt's
    last, partial block moves as well, so that the decode engine has less than a block to compute.
    """
    legs = (("prefill", tried.prefill_leg), ("decode", tried.decode_leg))
    for which, leg in legs:
        if leg is not None and not leg.ok:
            return _leg_failed(tried, which, leg, unreachable)
    for which, leg in legs:
        if leg is None:
            return failed(STEP, f"the {which} leg was not sent", "look at the engines' logs")
    took = f"{tried.took_s:.1f} s"
    moved = tried.moved
    if moved is None:
        return warned(
            STEP,
            "both legs were answered; the decode engine's metrics do not tell whether it computed the prompt",
            "update it to a vLLM with vllm:prompt_tokens_by_source_total (0.32), or look at its log",
        )
    if moved.prompt <= tried.prompt_tokens:
        if moved.fetched > 0 and not (partial_block_too and moved.computed >= (tried.block_size or 1)):
            words = f"decode fetched {moved.fetched:.0f} of {tried.prompt_tokens} tokens and computed"
            return passed(STEP, f"{words} {moved.computed:.0f}, {took}")
        why, remedy = itself
        words = f"the decode engine computed {moved.computed:.0f} of {tried.prompt_tokens} prompt tokens"
        return failed(STEP, f"{words} itself{why}", remedy)
    if moved.fetched > 0 and moved.computed < tried.prompt_tokens:
        return passed(STEP, f"decode did not compute the prompt itself, {took} (others ran there meanwhile)")
    return warned(
        STEP,
        (
            "both legs were answered; other requests ran on the decode engine, so it cannot be told what it "
            "computed"
        ),
        "ask again when it is quieter",
    )


def _leg_failed(tried: TriedPair, which: str, leg: LegEnd, unreachable: str) -> Finding:
    at = tried.prefill if which == "prefill" else tried.decode
    stays = "; its blocks stay held until their lease ends" if tried.stranded else ""
    words = f"the {which} leg failed: {leg.failed}{stays}"
    if leg.status is not None and which == "prefill":
        return failed(STEP, words, f"look at the log of {at}")
    if which == "decode" and leg.status is not None and 400 <= leg.status < 500:
        return failed(STEP, words, "start both with the same model files and the same --max-model-len")
    if which == "decode":
        return failed(STEP, words, unreachable)
    return failed(STEP, words, f"look at the log of {at}; restart it if it hangs")
