"""What all parties of a federation have agreed on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from jaxrec.federated.everywhere import Federation
from jaxrec.methods import method_module
from jaxrec.settings.fields import require
from jaxrec.types import DataError, SettingError, Sizes

DEPLOYABLE = ("fedavg", "fedcia", "popularity", "rqfedrec")
"""The methods whose every sum over clients is marked by `federated.everywhere`."""


@dataclass(frozen=True)
class Terms:
    """A method, its settings and the sizes of a federation; the coordinator proposes them."""

    method: str
    """A name in `jaxrec.METHODS`."""
    items: int
    """Items of the common catalogue."""
    clients: int
    """Clients that the federation has places for; a sum never is over more."""
    users: int
    """Users of all clients together, at most."""
    seed: int = 0
    """Of every random number, with a client's number."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The method's settings, by name."""

    def __post_init__(self) -> None:
        require(self.method in DEPLOYABLE, self, "method", f"one of {', '.join(DEPLOYABLE)}")
        for name, least in (("items", 1), ("clients", 1), ("users", 1), ("seed", 0)):
            value = getattr(self, name)
            whole = isinstance(value, int) and value >= least
            require(whole, self, name, f"a whole number of at least {least}")

    @property
    def federation(self) -> Federation:
        return Federation(self.clients, self.users)

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.users, self.items, self.clients)

    @property
    def config(self) -> Any:
        """The method's Config; raises SettingError for settings that real clients cannot have."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in self.settings.items()}
        config = method_module(self.method).Config(**values)
        if config.privacy not in ("plain", "secure_sum"):
            raise SettingError(
                f"privacy = {config.privacy!r}: clients on machines of their own add no noise yet; "
                "set privacy = 'secure_sum' or 'plain'"
            )
        for name, value in (("participation", 1.0), ("dropped", 0.0)):
            if getattr(config, name, value) != value:
                raise SettingError(
                    f"{name} = {getattr(config, name)}: simulates who takes part, and here the "
                    f"clients themselves do or do not; set {name} = {value}"
                )
        return config

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Terms:
        """Raises DataError where the text says no terms."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise DataError(f"these are no terms of a federation: {error}") from error
