"""Stand-ins whose tokenizer has as many special tokens as models with reserved ones, Llama 3 and Gemma among
them: kvproxy looks for all their names in every text.

Run as `proxy.simulation` is.
"""

import re
import sys

from proxy.simulation.__main__ import main
from proxy.simulation.engine import tokenizer

RESERVED_NAMES = 1000


def reserve_names() -> None:
    """Give the stand-ins' tokenizer in this process, and the model that is written of it, these tokens."""
    for number in range(RESERVED_NAMES):
        tokenizer.SPECIAL.setdefault(f"<|r{number}|>", len(tokenizer.SPECIAL))
    names = "|".join(map(re.escape, tokenizer.SPECIAL))
    tokenizer._SPECIAL_SPLIT = re.compile(f"({names})")


if __name__ == "__main__":
    reserve_names()
    sys.exit(main())
