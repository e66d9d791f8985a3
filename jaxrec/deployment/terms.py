"""What all parties of a federation have agreed on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from jaxrec.deployment.vectors import MOST_PARTS
from jaxrec.federated.divided import Federation
from jaxrec.methods import method_module
from jaxrec.settings.fields import fields, require, unknown
from jaxrec.types import DataError, SettingError, Sizes
from jaxrec.version import __version__

DEPLOYABLE = ("fedavg", "fedcia", "popularity", "rqfedrec")
"""The methods whose every sum over clients is marked by `federated.divided`."""


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
    """Every random number follows from it and from a client's number."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The method's settings, by name."""
    catalogue: str = ""
    """Digest of the common list of items; see `catalogue.digest_of`."""
    text: Literal["", "minilm", "tfidf"] = ""
    """What makes vectors of the items' texts on each machine, where the method reads them."""
    version: str = __version__
    """Of jaxrec: every party runs the same programs."""

    def __post_init__(self) -> None:
        require(self.method in DEPLOYABLE, self, "method", f"one of {', '.join(DEPLOYABLE)}")
        bounds = {"items": (1, 2**31), "clients": (1, MOST_PARTS), "users": (1, 2**31)}
        for name, (least, most) in (bounds | {"seed": (0, 2**32)}).items():
            value = getattr(self, name)
            whole = isinstance(value, int) and least <= value <= most
            require(whole, self, name, f"a whole number from {least} to {most}")
        require(isinstance(self.settings, dict), self, "settings", "names with their values")

    @property
    def federation(self) -> Federation:
        return Federation(self.clients, self.users)

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.users, self.items, self.clients)

    @property
    def config(self) -> Any:
        """The method's Config; raises SettingError for settings that real clients cannot have."""
        kind = method_module(self.method).Config
        for name in set(self.settings) - {*(known := fields(kind))}:
            raise unknown(f"{name}: is no setting of {self.method}", name, known)
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in self.settings.items()}
        config = kind(**values)
        if config.privacy not in ("plain", "secure_sum"):
            raise SettingError(
                f"privacy = {config.privacy!r}: clients on machines of their own add no noise yet; "
                "set privacy = 'secure_sum' or 'plain'"
            )
        for name, value in (("participation", 1.0), ("dropped", 0.0), ("attackers", 0.0)):
            if getattr(config, name, value) != value:
                raise SettingError(
                    f"{name} = {getattr(config, name)}: simulates what clients do, and here the "
                    f"clients do it themselves; set {name} = {value}"
                )
        if config.privacy == "secure_sum" and config.min_cohort < 2:
            raise SettingError(
                "min_cohort = 1: a sum over one client is what that client sent; set 2 or more"
            )
        return config

    @property
    def digest(self) -> str:
        """sha256, which tells one federation from another."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Terms:
        """Raises DataError where the text says no terms, or those of another version."""
        try:
            told = dict(json.loads(text))
        except (ValueError, TypeError) as error:
            raise DataError(f"what came states no terms of a federation: {error}") from error
        if (version := told.get("version", __version__)) != __version__:
            raise DataError(
                f"the server runs jaxrec {version} and this side {__version__}: install the same "
                "version on the server and on all clients"
            )
        try:
            return cls(**told)
        except (ValueError, TypeError) as error:
            raise DataError(f"what came states no terms of a federation: {error}") from error
