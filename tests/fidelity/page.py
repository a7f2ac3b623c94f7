"""docs/fidelity.md is made of the matrix, and so says what its tests have shown.

python -m tests.fidelity.page docs/fidelity.md            # write it
python -m tests.fidelity.page --check docs/fidelity.md    # exit code 1 if it would change
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator

from tests.fidelity.comparing import ADDED
from tests.fidelity.matrix import FEATURES, OTHERS, REFUSALS, ROUTES, Cell, Feature, Route, Served

_HEAD = """\
# What answers are like

<!-- Made by `python -m tests.fidelity.page docs/fidelity.md` of tests/fidelity/matrix.py: change it there. -->

Each cell of this table is a test. It asks the same of a plain vLLM engine and of kvproxy, first with a prompt that is new and then
again when it is cached. kvproxy's answer must be the engine's: the status, the headers, and each event of the stream or each
member of the JSON, in the same order, except for ids and times. The tests run on stand-in engines in every run of the suite, and
on real vLLM with `scripts/test.sh --real`. One decode engine is given the blocks of one prefill engine over NIXL;
`--bypass off` sees to it that short prompts have two legs as well, and each test counts the holds that were pulled.

| word | meaning |
| --- | --- |
| two legs | a prefill and a decode engine serve it, and the answer is a plain engine's |
| one leg | one instance serves it whole, since two legs would gain nothing; the answer is a plain engine's |
| refused | the engine refuses it, and the client gets its refusal |
| refused, other words | kvproxy refuses it before an engine sees it: with the engine's status and `code`, in words of its own |
| (empty) | no test compares it: the route has no such member, or it is not tried there, as are tools and grammars of responses and messages |
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *_table(), "", *_reasons(), "", *_others(), ""])


def _table() -> Iterator[str]:
    heads = [f"{route.name}, {way}" for route in ROUTES for way in ("whole", "stream")]
    yield "| feature | " + " | ".join(heads) + " |"
    yield "| --- |" + " --- |" * len(heads)
    for feature in FEATURES:
        words = [_word(route, feature, stream=stream) for route in ROUTES for stream in (False, True)]
        yield f"| {feature.name} | " + " | ".join(words) + " |"


def _word(route: Route, feature: Feature, *, stream: bool) -> str:
    return "" if feature.members(route) is None else Cell(route, feature, stream).served.value


def _reasons() -> Iterator[str]:
    yield "## Why one leg, or none"
    yield ""
    for feature in FEATURES:
        if feature.why:
            yield f"- {feature.name}: {feature.why}."
        elif {feature.unary, feature.stream} & {Served.WHOLE, *REFUSALS}:
            raise ValueError(f"{feature.name}: say why it is not served by two legs")


def _others() -> Iterator[str]:
    yield "## What is not a plain engine's"
    yield ""
    for other in OTHERS:
        yield f"- `{other.member}` of {other.where}: {other.why}."
    added = " and ".join(f"`{name}`" for name in sorted(ADDED))
    yield f"- Streams have {added} besides, so that nothing on their way holds them back."
    yield "- `system_fingerprint` is of the decode engine's settings, which are not a plain engine's."
    yield "- `vary` is of CORS, which kvproxy answers by itself."
    yield "- `server` is kvproxy's, as are the headers that begin with `x-kvproxy-`."


def main(words: list[str]) -> int:
    """Write the page, or check it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fidelity.page")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("path", type=pathlib.Path)
    given = parser.parse_args(words)
    if not given.check:
        given.path.write_text(page(), encoding="utf-8")
        return 0
    return int(given.path.read_text(encoding="utf-8") != page())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
