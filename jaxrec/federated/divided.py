"""Sums over all clients of a federation, where a program may hold only some of them.

In a simulation one program holds all clients, so a sum along their axis is a sum over all of them.
On machines of their own, a client's program holds that client alone, and what it adds up is a part.
`sum_over_clients` marks each value that is a part of such a sum. It costs nothing in a simulation.
Inside `divided_among` it leaves a mark in the traced program, at which `stages` cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive


class Federation(NamedTuple):
    """What a program that holds some clients knows of all of them."""

    clients: int
    users: int


_federation: ContextVar[Federation | None] = ContextVar("federation", default=None)

sum_p = Primitive("sum_over_clients")
sum_p.def_abstract_eval(lambda part: part)


@contextmanager
def divided_among(federation: Federation) -> Iterator[None]:
    """What is traced inside is a program of some clients; the others are on other machines."""
    token = _federation.set(federation)
    try:
        yield
    finally:
        _federation.reset(token)


def is_divided() -> bool:
    """Whether the program that is traced holds only some of the clients."""
    return _federation.get() is not None


def sum_over_clients(part: Any) -> Any:
    """The sum over all clients of what this program's clients add up to: `part`, a tree of arrays.

    It must stand outside of loops and branches; see `repeat`.
    """
    return jax.tree.map(sum_p.bind, part) if is_divided() else part


def repeat(first: int, end: int, turn: Callable[[Any, Any], Any], start: Any) -> Any:
    """`jax.lax.fori_loop` whose turns may hold sums over all clients."""
    if not is_divided():
        return jax.lax.fori_loop(first, end, turn, start)
    for number in range(first, end):
        start = turn(number, start)
    return start


def number_of_clients(here: int) -> int:
    """How many clients the federation has; `here` are this program's places for them."""
    federation = _federation.get()
    return here if federation is None else federation.clients


def number_of_users(here: int) -> int:
    """How many users the federation has; `here` are this program's places for them."""
    federation = _federation.get()
    return here if federation is None else federation.users
