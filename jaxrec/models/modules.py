"""Flax modules as models of federated clients.

A module is made of (key, users, width). Called with item vectors [I, D] and its client's rows
[U, I], it returns vectors of its users [U, F] and of the items [I, F], whose inner products are the
scores; with a method `score(user, item) -> [U, I]` it scores otherwise. What is of one user only is
a `Private` variable; FedAvg shares the rest. A module draws its parameters itself, floats alone.

    class Bilinear(nnx.Module):
        def __init__(self, key, users, width):
            self.user = Private(0.1 * jax.random.normal(key, (users, width)))
            self.mix = nnx.Param(jnp.eye(width))

        def __call__(self, item, rows):
            return self.user[...] @ self.mix[...], item

An item encoder is made of (key, items, text, width), with T numbers of text an item, and called
with the texts' vectors [I, T]; it returns item vectors [I, D].
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.models import collaborative
from jaxrec.models.clients import ClientModel
from jaxrec.models.collaborative import Tables
from jaxrec.types import SettingError


class Private(nnx.Param):
    """A parameter that is about one client's users and that no method shares."""


class MF(nnx.Module):
    """Matrix factorisation: a table of users, and the items as they come."""

    def __init__(self, key: jax.Array, users: int, width: int, scale: float = 0.1):
        self.user = Private(scale * jax.random.normal(key, (users, width)))

    def __call__(self, item: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.user[...], item


class LightGCN(MF):
    """The same after a layer over the client's own interaction graph (He et al., SIGIR 2020)."""

    layers = 1

    def __call__(self, item: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        encoded = collaborative.encode(Tables(self.user[...], item), rows, layers=self.layers)
        return encoded.user, encoded.item


class MLP(nnx.Module):
    """Neural collaborative filtering's multi-layer perceptron (He et al., WWW 2017), one layer.

    s_ui = w . relu(A u + B i + b) + u . i, its hidden layer as wide as twice a vector. The inner
    product beside it is NeuMF's other half, and what it learns from first.
    """

    def __init__(self, key: jax.Array, users: int, width: int, scale: float = 0.1):
        keys = jax.random.split(key, 3)
        glorot = jax.nn.initializers.glorot_uniform()
        self.user = Private(scale * jax.random.normal(keys[2], (users, width)))
        self.of_user = nnx.Param(glorot(keys[0], (width, 2 * width)))
        self.of_item = nnx.Param(glorot(keys[1], (width, 2 * width)))
        self.bias = nnx.Param(jnp.zeros(2 * width))
        self.out = nnx.Param(jnp.zeros(2 * width))  # so it begins as matrix factorisation

    def __call__(self, item: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        user = self.user[...]
        hidden = user @ self.of_user[...] + self.bias[...]
        return jnp.hstack([user, hidden]), jnp.hstack([item, item @ self.of_item[...]])

    def score(self, user: jax.Array, item: jax.Array) -> jax.Array:
        width, out = len(self.of_user[...]), self.out[...]

        @jax.checkpoint  # else the hidden layers [U, I, 2 D] of all users are kept for the gradient
        def one(user: jax.Array) -> jax.Array:
            return (
                jax.nn.relu(user[width:] + item[:, width:]) @ out + item[:, :width] @ user[:width]
            )

        return jax.lax.map(one, user)


class TextTower(nnx.Module):
    """Item vectors from their texts' vectors, by a network of one hidden layer [T, 2 D, D]."""

    def __init__(self, key: jax.Array, items: int, text: int, width: int):
        keys = jax.random.split(key)
        glorot = jax.nn.initializers.glorot_uniform()
        self.into = nnx.Param(glorot(keys[0], (text, 2 * width)))
        self.bias = nnx.Param(jnp.zeros(2 * width))
        self.out = nnx.Param(glorot(keys[1], (2 * width, width)))

    def __call__(self, text: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(text @ self.into[...] + self.bias[...])
        return hidden @ self.out[...]


def of_module(name: str, module: Any, width: int, scale: float) -> ClientModel:
    """A client's model made of a Flax module, with a table [I, D] of items at N(0, scale^2).

    Raises SettingError where the module is none that a client can train.
    """
    check_module(name, module, width)

    @cache
    def graph(users: int) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: module(jax.random.key(0), users, width)))[0]

    def init_users(key: jax.Array, users: int) -> tuple[nnx.State, nnx.State]:
        _, private, network = nnx.split(module(key, users, width), Private, ...)
        return private, network

    def encode(tables: Tables, item: jax.Array, rows: jax.Array) -> Tables:
        user, item = nnx.merge(graph(len(rows)), tables.user, tables.network)(item, rows)
        return Tables(user, item, (tables.user, tables.network))

    def head(encoded: Tables, users: int) -> jax.Array:
        return nnx.merge(graph(users), *encoded.network).score(encoded.user, encoded.item)

    return ClientModel(
        name,
        width,
        init_users,
        init_items=lambda key, items, text: scale * jax.random.normal(key, (items, width)),
        items=lambda item, text: item,
        encode=encode,
        head=head if hasattr(module, "score") else None,
        plain=False,
    )


def check_module(name: str, module: Any, width: int) -> None:
    """Raises SettingError, saying what is wrong, where a module breaks the rules at the top."""
    items, shared = 5, []

    def refuse(what: str) -> SettingError:
        return SettingError(f"model = {name!r}: {what}; see jaxrec.models.modules")

    def parts(users: int) -> tuple[Any, ...]:
        return nnx.split(module(jax.random.key(0), users, width), Private, ...)[1:]

    def called(users: int) -> tuple[jax.Array, jax.Array]:
        made = module(jax.random.key(0), users, width)
        return made(jnp.zeros((items, width)), jnp.zeros((users, items)))

    for users in (2, 3):
        private, rest = jax.eval_shape(partial(parts, users))
        leaves = jax.tree.leaves((private, rest))
        if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
            raise refuse("it holds something that is no float, such as a random key")
        if not jax.tree.leaves(private):
            raise refuse("it has no Private variable, so nothing of it is about a user")
        shared.append([leaf.shape for leaf in jax.tree.leaves(rest)])
        user, item = jax.eval_shape(partial(called, users))
        if (user.ndim, item.ndim) != (2, 2) or (len(user), len(item)) != (users, items):
            raise refuse(
                f"called with items {(items, width)} and rows {(users, items)} it returns "
                f"{user.shape} and {item.shape}, not vectors of the users and of the items"
            )
    if shared[0] != shared[1]:
        raise refuse("a variable that is not Private grows with the users, so it is about them")


def with_encoder(model: ClientModel, encoder: Any) -> ClientModel:
    """The model, with an encoder in place of its table of items."""

    @cache
    def graph(items: int, text: int) -> nnx.GraphDef:
        made = lambda: encoder(jax.random.key(0), items, text, model.width)
        return nnx.split(nnx.eval_shape(made))[0]

    return model._replace(
        init_items=lambda key, items, text: nnx.split(encoder(key, items, text, model.width))[1],
        items=lambda item, text: nnx.merge(graph(*text.shape), item)(text),
        table=False,
    )
