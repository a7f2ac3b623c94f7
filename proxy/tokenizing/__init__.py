"""From a request to the token ids the engines will see, or to "unknown"."""

from proxy.tokenizing.bounds import Excess
from proxy.tokenizing.comparison import configured_tokenizer
from proxy.tokenizing.files import find_model, read_model
from proxy.tokenizing.local import LocalTokenizer, NotExactError
from proxy.tokenizing.prompts import PromptTokenizer, Tokenized

__all__ = [
    "Excess",
    "LocalTokenizer",
    "NotExactError",
    "PromptTokenizer",
    "Tokenized",
    "configured_tokenizer",
    "find_model",
    "read_model",
]
