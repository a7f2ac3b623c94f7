"""From a request to the token ids the engines will see, or to "unknown"."""

from proxy.tokenizing.engines import EngineTokenizer, Tokenized

__all__ = ["EngineTokenizer", "Tokenized"]
