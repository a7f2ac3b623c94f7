"""Measures what tokenizing costs: whole prompts against pieces of which most were seen before, in CPU time of
this process, one thread.

What is measured of a request: the question is read, the template rendered, the text cut, new pieces are
tokenized, and the ids packed.
"""

import json
import pathlib
import random
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from proxy.simulation.api.model_files import write_model
from proxy.tokenizing import LocalTokenizer, find_model, read_model
from proxy.tokenizing.local.exactness import Cuts
from proxy.tokenizing.local.pieces import PieceCache

VOCABULARY = 16_000
TURNS = 20
CHATS = 10
QUESTIONS = 20
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def sources() -> Iterator[str]:
    """Text that every machine has."""
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.read_text("utf-8", errors="ignore")


def trained(directory: pathlib.Path) -> pathlib.Path:
    """A model's directory with a tokenizer of a usual kind."""
    tok = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated", invert=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|turn|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(sources(), trainer)
    write_model(directory)
    tok.save(str(directory / "tokenizer.json"))
    return directory


class Texts:
    """Pieces of prose, no two alike, of about as many tokens as asked for."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311  # the same texts in every run
        self._words = [word for text in sources() for word in text.split() if word.isalpha()]

    def of(self, tokens: int) -> str:
        """Some words: about one token each, with a space."""
        return " ".join(self._rng.choices(self._words, k=tokens))


def question(messages: list[dict[str, str]]) -> bytes:
    """As `fields.what_to_tokenize` makes it of a chat."""
    return json.dumps({"messages": messages, "model": "m"}, ensure_ascii=False).encode()


def growing_chats(texts: Texts) -> list[bytes]:
    """The requests of chats of 20 turns, whose prompts grow to about 6000 tokens."""
    asked = []
    for _ in range(CHATS):
        messages = [{"role": "system", "content": texts.of(200)}]
        for _ in range(TURNS):
            messages.append({"role": "user", "content": texts.of(80)})
            asked.append(question(messages))
            messages.append({"role": "assistant", "content": texts.of(200)})
    return asked


def repeated_document(texts: Texts, tokens: int) -> list[bytes]:
    """Requests with one document and a new question each."""
    document = texts.of(tokens)
    return [
        question([{"role": "user", "content": f"{document}\n\nQuestion: {texts.of(30)}"}])
        for _ in range(QUESTIONS)
    ]


def measured(run: Callable[[bytes], object], asked: list[bytes]) -> float:
    """CPU seconds for all of them."""
    before = time.process_time()
    for one in asked:
        run(one)
    return time.process_time() - before


def compare(name: str, make: Callable[[], LocalTokenizer], asked: list[bytes], rounds: int) -> None:
    """Print a row of the table."""
    plain_s, cached_s, last_ms = [], [], []
    for _ in range(rounds):
        plain, cached = make(), make()
        plain.pieces = PieceCache(plain._encode, Cuts(), 0)  # noqa: SLF001  # whole, and nothing remembered
        plain_s.append(measured(plain.answer_now, asked))
        last = len(asked) - 1
        before_s, last_s = (
            measured(cached.answer_now, asked[:last]),
            measured(cached.answer_now, asked[last:]),
        )
        cached_s.append(before_s + last_s)
        last_ms.append(last_s * 1000)
        tokens = 0
        for one in asked:
            ids = cached.answer_now(one)
            if ids is None or ids != plain.answer_now(one):
                raise SystemExit(f"{name}: the tokens differ")
            tokens += len(ids)
        plain.close()
        cached.close()
    slow_s, fast_s = statistics.median(plain_s), statistics.median(cached_s)
    print(
        f"| {name} | {tokens / len(asked):.0f} | {tokens / slow_s / 1e6:.2f} M | "
        f"{tokens / fast_s / 1e6:.2f} M | {slow_s / fast_s:.1f} | {slow_s / len(asked) * 1000:.2f} ms | "
        f"{fast_s / len(asked) * 1000:.2f} ms | {statistics.median(last_ms):.2f} ms |",
        flush=True,
    )


def run(tokenizer: str | None, rounds: int) -> None:
    """Print a table in Markdown. `tokenizer`: a model's directory or name; None for one that is trained
    first.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = find_model(tokenizer) if tokenizer else trained(pathlib.Path(folder))
        files = read_model(directory)
        cuts = LocalTokenizer(files).pieces.cuts
        print(f"cut at {len(cuts.tokens)} special tokens; between words: {'yes' if cuts.words else 'no'}\n")
        print(
            "| prompts | tokens each | plain, tokens/s | cached, tokens/s | ratio | plain | cached | the "
            "last one |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        texts = Texts(seed=1)
        for name, asked in (
            (f"chats of {TURNS} turns", growing_chats(texts)),
            ("a document of 8k words, new questions", repeated_document(texts, 8_000)),
            ("a document of 32k words, new questions", repeated_document(texts, 32_000)),
            ("each prompt new", [question([{"role": "user", "content": texts.of(2000)}]) for _ in range(50)]),
        ):
            compare(name, lambda: LocalTokenizer(files), asked, rounds)
