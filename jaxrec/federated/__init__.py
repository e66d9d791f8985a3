"""Clients on an array axis: the round engine and what happens on one client's device."""

from jaxrec.federated import communication, engine, local

__all__ = ["communication", "engine", "local"]
