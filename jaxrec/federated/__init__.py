"""Clients on an array axis: the round engine and what happens on one client's device."""

from jaxrec.federated import (
    aggregate,
    catalogue,
    codecs,
    communication,
    cooccurrence,
    engine,
    local,
)

__all__ = [
    "aggregate",
    "catalogue",
    "codecs",
    "communication",
    "cooccurrence",
    "engine",
    "local",
]
