"""What a node and the coordinator have in common: the method, cut at its sums over all clients.

A state has leaves that all clients share and leaves along the clients' axis. The coordinator keeps
the first, each node its own slice of the others, and both run the same `init` and `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.deployment.terms import Terms
from jaxrec.federated.divided import divided_among
from jaxrec.federated.stages import Stages, cut
from jaxrec.methods import method_module
from jaxrec.types import Clients, Data, Method


class Programs(NamedTuple):
    """The terms as programs for data of one shape; parties of one process share them."""

    like: Any  # the shapes of a state
    is_own: Any  # which leaves of it, as a tree of bool, are along the clients' axis
    init: Callable[[bool], Stages]  # whether of a node -> (key, data) -> own leaves, or a state
    step: Callable[[bool], Stages]  # (state, data, key) -> own leaves, or (state, metrics)


class Party:
    """The terms for one party's rows; raises SettingError where they do not go together."""

    def __init__(self, terms: Terms, data: Data):
        """`data`: one bucket of this party's client; of the coordinator's, see `nobody`."""
        module = method_module(terms.method)
        self.config, _ = module.TRAITS.settled(terms.config, data, False)
        module.TRAITS.check_data(self.config, data)
        self.terms, self.data = terms, data
        self.method: Method = module.make(self.config, terms.sizes)
        self.init_key, self.key = jax.random.split(jax.random.key(terms.seed))
        leaves, structure = jax.tree.flatten(data)
        shapes = tuple((leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves)
        self.programs = _programs(terms.to_json(), self.config, structure, shapes)

    def leaves(self, state: Any, own: bool) -> list[np.ndarray]:
        """The leaves of a state that are, or are not, along the clients' axis, on the host."""
        return on_host(_picked(self.programs.is_own, state, own))

    def joined(self, shared: Iterable[Any], own: Iterable[Any]) -> Any:
        """The state of leaves that all clients share and of a client's own."""
        kinds, structure = jax.tree.flatten(self.programs.is_own)
        leaves = iter(shared), iter(own)
        return structure.unflatten([next(leaves[mine]) for mine in kinds])

    @cached_property
    def shared_like(self) -> list[Any]:
        """The shapes of the leaves that all clients share."""
        return _picked(self.programs.is_own, self.programs.like, own=False)

    @cached_property
    def reads(self) -> list[bool]:
        """Whether a node's round reads each leaf that all clients share."""
        kinds = jax.tree.leaves(self.programs.is_own)
        reads = self.programs.step(True).reads
        return [read for read, mine in zip(reads, kinds, strict=False) if not mine]

    def key_of(self, round: int) -> jax.Array:
        """The key of a round: the one that a simulation has."""
        return jax.random.fold_in(self.key, round)


@lru_cache(maxsize=16)
def _programs(terms_json: str, config: Any, structure: Any, shapes: tuple) -> Programs:
    terms = Terms.from_json(terms_json)
    # A method apart from the party's: JAX keeps traces by function, and these are of a divided one.
    method = method_module(terms.method).make(config, terms.sizes)
    key = jax.random.key(0)
    data = structure.unflatten([jax.ShapeDtypeStruct(*shape) for shape in shapes])
    twice = lambda leaf: jax.ShapeDtypeStruct((2 * leaf.shape[0], *leaf.shape[1:]), leaf.dtype)
    more = data._replace(clients=jax.tree.map(twice, data.clients))
    with divided_among(terms.federation):
        like, other = (jax.eval_shape(method.init, key, each) for each in (data, more))
    is_own = jax.tree.map(lambda one, two: one.shape != two.shape, like, other)

    @lru_cache
    def init(node: bool) -> Stages:
        wanted = partial(_picked, is_own, own=True) if node else lambda state: state
        return cut(method.init, terms.federation, key, data, wanted=wanted)

    @lru_cache
    def step(node: bool) -> Stages:
        wanted = (lambda made: _picked(is_own, made[0], own=True)) if node else lambda made: made
        return cut(method.step, terms.federation, like, data, key, wanted=wanted)

    return Programs(like, is_own, init, step)


def _picked(is_own: Any, state: Any, own: bool) -> list[Any]:
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(is_own), strict=True)
    return [leaf for leaf, mine in pairs if mine == own]


def nobody(terms: Terms, like: Data) -> Data:
    """The coordinator's data: the public catalogue, and a client without rows that only pads.

    `like` has the items' domains and texts, and says by its clients whether rows have an order.
    """
    row = jnp.zeros((1, 1), jnp.int32)
    ordered = all(clients.age is not None for clients in like.clients)
    clients = Clients(
        row, row, row > 0, row + terms.users, row[0] + terms.clients, jnp.zeros(1),
        row if ordered else None,
    )  # fmt: skip
    return like._replace(clients=(clients,), history=None)


def on_host(leaves: Iterable[Any]) -> list[np.ndarray]:
    """Arrays as NumPy's."""
    return [np.asarray(leaf) for leaf in leaves]
