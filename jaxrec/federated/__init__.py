"""Clients on an array axis: the round engine and what happens on one client's device."""

from jaxrec.federated import (
    aggregate,
    byte_ledger,
    catalogue,
    codecs,
    cohort,
    cooccurrence,
    engine,
    local,
    scoring,
)

__all__ = [
    "aggregate",
    "byte_ledger",
    "catalogue",
    "codecs",
    "cohort",
    "cooccurrence",
    "engine",
    "local",
    "scoring",
]
