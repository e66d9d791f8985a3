"""Clients on an array axis: rounds, what happens on one client's device, and privacy."""

from jaxrec.federated import (
    accountant,
    aggregate,
    byte_ledger,
    catalogue,
    codecs,
    cohort,
    cooccurrence,
    engine,
    local,
    privacy,
    scoring,
    secure_aggregation,
)

__all__ = [
    "accountant",
    "aggregate",
    "byte_ledger",
    "catalogue",
    "codecs",
    "cohort",
    "cooccurrence",
    "engine",
    "local",
    "privacy",
    "scoring",
    "secure_aggregation",
]
