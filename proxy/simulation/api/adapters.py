"""Invariant: a name is an adapter from when it is loaded until it is unloaded, and no other adapter ever gets
its number.

As in vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING; of an adapter's content only matters whether its directory
exists.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from proxy.simulation.api.errors import ApiError, NotFoundError
from proxy.simulation.api.schema import boolean, check, integer, nullable, record, string

_LOAD = record(
    {"lora_name": string, "lora_path": string, "load_inplace": boolean, "is_3d_lora_weight": boolean},
    ("lora_name", "lora_path"),
)
_UNLOAD = record({"lora_name": string, "lora_int_id": nullable(integer())}, ("lora_name",))


class InvalidUserInputError(ApiError):
    """The adapter cannot be loaded or unloaded so."""

    status = 400
    type = "InvalidUserInput"


class Adapters:
    """The adapters of one stand-in."""

    def __init__(self, model: str, names: Sequence[str]) -> None:
        """`names`: the adapters that the engine is started with."""
        self._model = model
        self._names = tuple(names)
        self._paths: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self.start_anew()

    def start_anew(self) -> None:
        """Go back to the adapters of the start, as a new process does."""
        self._paths = {name: name for name in self._names}
        self._numbers = {name: number for number, name in enumerate(self._names, start=1)}

    def __iter__(self) -> Iterator[str]:
        """The names of the adapters, in the order of loading."""
        return iter(self._paths)

    def __contains__(self, name: object) -> bool:
        """Whether an adapter is loaded."""
        return name in self._paths

    def path(self, name: str) -> str:
        """The directory of an adapter."""
        return self._paths[name]

    def number(self, name: str) -> int:
        """The number by which the engine knows an adapter."""
        return self._numbers[name]

    def load(self, body: Any) -> str:
        """Load an adapter; returns the words of success. Raises ApiError."""
        asked = check(body, _LOAD)
        name, path = asked["lora_name"], asked["lora_path"]
        if not name or not path:
            raise InvalidUserInputError("Both 'lora_name' and 'lora_path' must be provided.")
        if name == self._model:
            raise InvalidUserInputError(f"The lora adapter '{name}' conflicts with a served base model.")
        if name in self and not asked.get("load_inplace"):
            raise InvalidUserInputError(
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
                "place, set 'load_inplace' to True."
            )
        if not pathlib.Path(path).is_dir():
            raise NotFoundError(f"Loading lora {name} failed: No adapter found for {path}")
        if name not in self:
            self._numbers[name] = max(self._numbers.values(), default=0) + 1
        self._paths[name] = path
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload(self, body: Any) -> str:
        """Unload an adapter; returns the words of success. Raises ApiError."""
        name = check(body, _UNLOAD)["lora_name"]
        if not name:
            raise InvalidUserInputError("'lora_name' needs to be provided to unload a LoRA adapter.")
        if name not in self:
            raise NotFoundError(f"The lora adapter '{name}' cannot be found.")
        del self._paths[name]
        return f"Success: LoRA adapter '{name}' removed successfully."
