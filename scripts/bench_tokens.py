"""Measures what tokenizing costs: whole prompts against pieces of which most were seen before, on growing
chats and repeated documents.

    .venv/bin/python scripts/bench_tokens.py [--tokenizer PATH|NAME] [--rounds 3]

CPU time of this process, one thread; medians of the rounds. "Prompt" is all that a request costs: the
question is read, the template rendered, the text cut, new pieces are tokenized, and the ids packed. Without
--tokenizer a byte-level BPE of 16000 tokens with Llama 3's split pattern is trained first, on Python's own
sources.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from scripts.workshop import launching
from scripts.workshop.bench.tokens import run


def main() -> None:
    """Print a table in Markdown."""
    parser = launching.parser(__doc__)
    parser.add_argument("--tokenizer", metavar="PATH|NAME", help="a model to tokenize for")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    run(args.tokenizer, args.rounds)


if __name__ == "__main__":
    main()
