"""Clients on an array axis: the round engine and what happens on one client's device."""

from jaxrec.federated import engine, local

__all__ = ["engine", "local"]
