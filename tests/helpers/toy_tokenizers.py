"""Small tokenizers of every kind, trained in memory on text that every machine has."""

import functools
import pathlib
import sysconfig
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|begin|>", "<|turn|>", "<|end|>"]
_AWKWARD = "ÀÉÎ naïve Ελληνικά 漢字かな 한국어 العربية 👩‍👩‍👧 e\u0301 ﬁ ½ ² \u200b\u00a0 'S 'll ''' \t\n\r\n  \n\n   x"


@functools.cache
def corpus() -> tuple[str, ...]:
    stdlib = pathlib.Path(sysconfig.get_path("stdlib"))
    texts = [(stdlib / name).read_text("utf-8")[:40_000] for name in ("argparse.py", "ast.py", "copy.py")]
    return (*texts, *[_AWKWARD] * 20)


def byte_level(pattern: str | None, normalizer: Any = None, **bpe: Any) -> Tokenizer:
    """BPE over bytes with this split pattern; GPT-2's where there is none."""
    tok = Tokenizer(models.BPE(**bpe))
    if normalizer is not None:
        tok.normalizer = normalizer
    if pattern is None:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        first = pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tok.pre_tokenizer = pre_tokenizers.Sequence([first, last])
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(corpus(), trainer)
    return tok


def sentencepiece_like(*, prepend: bool, pre_tokenizer: Any = None) -> Tokenizer:
    """BPE with byte fallback over text whose spaces are "▁", as Llama 2 and Gemma have it."""
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if prepend else []
    trained.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next", invert=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *SPECIAL],
        limit_alphabet=200,
        show_progress=False,
    )
    trained.train_from_iterator(corpus(), trainer)
    if pre_tokenizer is None:
        trained.pre_tokenizer = None
    else:
        trained.pre_tokenizer = pre_tokenizer
    return trained


def unigram(scheme: str) -> Tokenizer:
    tok = Tokenizer(models.Unigram())
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=800, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
    )
    tok.train_from_iterator(corpus(), trainer)
    return tok


def word_piece() -> Tokenizer:
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer()
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=800, special_tokens=["[UNK]", *SPECIAL], show_progress=False
    )
    tok.train_from_iterator(corpus(), trainer)
    return tok


def with_added(tok: Tokenizer, *tokens: AddedToken) -> Tokenizer:
    tok.add_tokens(list(tokens))
    return tok
