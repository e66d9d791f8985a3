"""The uploads of a federation's clients, as a server that sees them has them.

Each function trains a method some rounds and gives the next round's uploads [C, ...] of a sample of
clients, and their mean over all clients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrec.federated import catalogue
from jaxrec.federated.local import dense_rows
from jaxrec.methods import fedavg, fedcia, fedmf, rqfedrec
from jaxrec.methods.fedcia import client as fedcia_client
from jaxrec.methods.fedcia.config import client_models
from jaxrec.methods.fedcia.state import FedCIA
from jaxrec.methods.rqfedrec import client as rqfedrec_client
from jaxrec.methods.rqfedrec import server as rqfedrec_server
from jaxrec.ops import fold_in
from jaxrec.types import Data, Method, Sizes

SAMPLE = 100  # clients that are attacked


class Seen(NamedTuple):
    uploads: list[np.ndarray]  # of each client of the sample
    held: np.ndarray  # bool [C, I]  what those clients hold
    mean: np.ndarray  # over all clients
    norm: float  # median L2 norm of an upload: a clip
    public: Any = None  # what the server knows beside them


def trained(method: Method, data: Data, rounds: int, seed: int = 0) -> Any:
    """The state after some rounds."""
    step = jax.jit(method.step)
    state = jax.jit(method.init)(jax.random.key(seed), data)
    for number in range(rounds):
        state, _ = step(state, data, jax.random.key(1000 * seed + number + 1))
    return state


def collect(
    work: Callable, private: tuple[Any, ...], data: Data, items: int, public: Any = None
) -> Seen:
    """`work(private, clients, key) -> upload` of every client, some of them kept."""
    stride = -(-sum(int((c.weight > 0).sum()) for c in data.clients) // SAMPLE)
    kept, held, norms, total, number = [], [], [], 0.0, 0
    one = lambda inputs: work(*inputs)
    every = jax.jit(lambda *inputs: jax.lax.map(one, inputs, batch_size=32))
    for own, clients in zip(private, data.clients, strict=True):
        keys = jax.vmap(lambda c: jax.random.fold_in(jax.random.key(9), c))(clients.client)
        uploads = np.asarray(every(own, clients, keys))
        rows = np.asarray(jax.vmap(lambda c: dense_rows(c, items).any(0))(clients))
        total = total + uploads.sum(0)
        number += len(uploads)
        norms.append(np.linalg.norm(uploads.reshape(len(uploads), -1), axis=1))
        kept += list(uploads[::stride])
        held.append(rows[::stride])
    return Seen(
        kept,
        np.concatenate(held),
        np.asarray(total / number),
        float(np.median(np.concatenate(norms))),
        public,
    )


def of_fedcia(data: Data, sizes: Sizes, rounds: int, **settings: Any) -> Seen:
    """Factors [I, D] or sketches [I, R]; public: the basis [I, R] that was sent."""
    steps = {"privacy": "plain", "training": "steps", "width": 64}
    config = fedcia.method.settled(fedcia.Config(**steps, **settings))
    state = trained(fedcia.make(config, sizes), data, rounds)
    parts = FedCIA(config, sizes, client_models(config))
    train = partial(fedcia_client.train, parts, parts.models[0], None, state.shared)

    def work(private, clients, key):
        upload = train(private, clients, key)[0]
        return upload[0] if parts.additive else upload

    private = tuple(zip(state.tables, state.moments, strict=True))
    basis = np.asarray(state.shared.similarity.vectors)
    return collect(work, private, data, sizes.items, basis)


def of_fedavg(data: Data, sizes: Sizes, rounds: int) -> Seen:
    """Changes of the item table [I, D]."""
    config = fedavg.settled(fedavg.Config(privacy="plain", upload="change", loss="square"), sizes)
    method = fedavg.make(config, sizes)
    state = trained(method, data, rounds)
    parts = method.step.args[0]  # a partial of the fixed parts
    train = partial(fedavg.train, parts, None, state.shared)
    work = lambda private, clients, key: train(private, clients, key)[0]
    return collect(work, tuple(zip(state.user, state.moments, strict=True)), data, sizes.items)


def of_fedmf(data: Data, sizes: Sizes, rounds: int) -> Seen:
    """Gradients of the item table [I, D]."""
    config = fedavg.settled(fedavg.Config(privacy="plain", upload="gradient"), sizes)
    state = trained(fedavg.make(config, sizes), data, rounds)
    curve = fold_in.curvature(state.shared.item, state.shared.shares)

    def work(user, clients, key):
        factors = fedmf.train(config, curve, state.shared, user, clients, key)[0]
        return factors.left.T @ factors.right

    return collect(work, state.user, data, sizes.items)


def of_rqfedrec(data: Data, sizes: Sizes, rounds: int, **settings: Any) -> Seen:
    """Codebook gradients [P, K, D]; public: the items' codes [I, P]."""
    config = rqfedrec.Config(privacy="plain", participation=1.0, next_rows=0, **settings)
    state = trained(rqfedrec.make(config, sizes), data, rounds)
    sent = rqfedrec_server.broadcast(config, state.shared)
    items = catalogue.with_incidence(rqfedrec_server.all_items(state.shared, sent), config.codes)

    def work(private, clients, key):
        return rqfedrec_client.train(config, sent, items, state.shared, private, clients, key)[0]

    private = tuple(zip(state.user, state.error, strict=True))
    return collect(work, private, data, sizes.items, np.asarray(state.shared.codes.table))
