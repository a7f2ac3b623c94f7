"""From a request to the token ids that engines will see, or to the reason why these are unknown."""

from proxy.tokenizing.comparison import configured_tokenizer
from proxy.tokenizing.local.bounds import Excess
from proxy.tokenizing.local.files import find_model, read_model
from proxy.tokenizing.local.tokenizer import LocalTokenizer, NotExactError
from proxy.tokenizing.prompts import UNREAD, PromptTokenizer, Tokenized

__all__ = [
    "UNREAD",
    "Excess",
    "LocalTokenizer",
    "NotExactError",
    "PromptTokenizer",
    "Tokenized",
    "configured_tokenizer",
    "find_model",
    "read_model",
]
