"""FedCIA: clients share item similarities, never embeddings (Han et al., SIGIR 2025, 2504.14208).

A round, with E_c [I, D] the item table of client c (section 3 of the paper):

    align   E_c <- towards min ||E_c E_c^T - S||_F    S the server's; item table only
    train   a few steps on the client's own interactions
    upload  A_c = E_c E_c^T
    server  S = mean_c A_c

Each client keeps its own embedding space, so clients of different widths and models can share S.

What differs from the paper, and why:
- No I x I matrix. A_c travels as its factor E_c Q with Q a random rotation; S is kept as its
  leading R eigenpairs (the share of its trace they hold is reported).
- The minimisers of ||E E^T - S||_F are known, so a client takes the one nearest to its table
  (orthogonal Procrustes). `align="gradient"` is the paper's descent, step for step, inside the
  eigenbasis of S (`similarity.py`); it ends on a cone, so it keeps moving by its step size.
- `upload="sketch"` sends E_c (E_c^T V) instead. It is additive, so a secure sum hides every
  client; it is the form to use when a client is one user.
- `tables="rebuilt"` lets clients forget E_c between rounds and start from S, so memory does not
  grow with the number of clients.
- Losses act on the inner product, over the full catalogue, instead of on the elementwise product.
- The authors' Laplace noise has neither clipping nor sensitivity: `noise` reproduces it for parity
  and promises no privacy.

Parameter-free models (gfcf, ease) have nothing to train: see `linear.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.federated import local, scoring
from jaxrec.federated.aggregate import combine
from jaxrec.federated.cohort import check_rounds, releases, weighed_alike, with_enough
from jaxrec.federated.divided import is_divided
from jaxrec.federated.engine import federated_round
from jaxrec.federated.malicious import RENAMED, with_attackers
from jaxrec.federated.private_mean import first_bounds
from jaxrec.federated.sum_bytes import with_protocol
from jaxrec.federated.support import supported, supported_items
from jaxrec.methods.fedcia import gram, linear, newton, similarity
from jaxrec.methods.fedcia.client import aligned, train
from jaxrec.methods.fedcia.config import ONE_SHOT, Config, client_models, settled, unread
from jaxrec.methods.fedcia.similarity import Similarity
from jaxrec.methods.fedcia.state import FedCIA, Metrics, Shared, State
from jaxrec.models.clients import ClientModel
from jaxrec.models.collaborative import Tables
from jaxrec.ops.growth import clients_over, over, users_over
from jaxrec.types import (
    Attendance,
    Clients,
    Data,
    Earlier,
    Method,
    Reads,
    SettingError,
    Sizes,
    Traffic,
    Traits,
    Unavailable,
)


def reads(config: Config) -> Reads:
    """What FedCIA reads beside the clients' rows."""
    if config.model in ONE_SHOT:
        return Reads(text=config.model == "gram" and config.basis != "items")
    return local.reads(config)


def with_advice(config: Config, data: Data, forward: bool) -> tuple[Config, str]:
    """The config, and where a lossless form makes no sense, how much less would do."""
    if config.model not in linear.PER_SKETCHED or config.form == "paper" or config.sketch:
        return local.settled(config, data, forward)
    return config, linear.advice(config, data)


TRAITS = Traits(
    run={"rounds": 40, "evaluate_every": 2, "patience": 4},
    reads=reads,
    settled=with_advice,
    uses=("order", "text"),
    renamed={"dropout": "dropped"} | RENAMED,
    retired=("memory",),
    before={"training": "steps"},
    unread=unread,
    smaller=(
        {"training": "steps", "tables": "rebuilt", "upload": "sketch", "block": 128},
        {"sketch": 512},
    ),
)


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    if config.model == "gram":
        return with_attackers(config, sizes, gram.make(config, sizes))
    if config.model in ONE_SHOT:
        return with_attackers(config, sizes, linear.make(config, sizes))
    config = with_enough(settled(config), sizes)
    check_rounds(config, sizes)
    if config.newton:
        return with_attackers(config, sizes, newton.make(config, sizes))
    models = client_models(config)
    fedcia = FedCIA(config, sizes, models)
    layers = max(model.layers for model in models)
    method = Method(
        partial(init, fedcia),
        partial(step, fedcia),
        partial(prepare, fedcia),
        scoring.score,
        traffic=traffic(fedcia),
        attendance=lambda metrics: Attendance(metrics.participants),
        releases=partial(releases, config) if config.noised else None,
        vectors=scoring.vectors,
        fold_in=scoring.folding(config, layers, partial(newest_table, fedcia)),
        grow=Unavailable("its clients have several models")
        if len(models) > 1
        else partial(grow, fedcia),
    )
    return with_attackers(config, sizes, scoring.with_models(method, models))


def traffic(fedcia: FedCIA) -> Traffic:
    """A factor or a sketch with its trace up, the eigenpairs down; float32.

    Clients that rebuild their tables get, beside the eigenpairs, the rotation of the common one.
    """
    config, items, rank, models = fedcia.config, fedcia.sizes.items, fedcia.rank, fedcia.models
    width = sum(model.width for model in models) / len(models)
    up = 4.0 * items * rank + 4 if fedcia.additive else 4.0 * items * width
    rotation = 4.0 * min(rank, models[0].width) * models[0].width if fedcia.rebuilt else 0.0
    counts = 4.0 * items * (config.support > 1)
    down = 4.0 * rank * (items + 1) + rotation
    texts = local.text_bytes(config, fedcia.sizes.items)
    plain = Traffic(up=up, down=down, setup_up=counts, setup_down=counts + texts)
    setup, clients = int(config.support > 1), fedcia.sizes.clients
    return with_protocol(config, plain, clients, cohort=config.participation, setup=setup)


def init(fedcia: FedCIA, key: jax.Array, data: Data) -> State:
    """Random tables, the item table common to the clients of one width."""
    config, items = fedcia.config, fedcia.sizes.items
    data = local.with_text(config, data)
    key_item, key_user, key_start = jax.random.split(key, 3)
    tables, moments = [], []
    for model, clients in groups(data, fedcia.models, config.weighting):
        user, network = local.init_users(key_user, clients, model)
        item = model.init_items(key_item, items, local.text_numbers(data.text))
        item = item[:0] if fedcia.rebuilt else item
        tables.append(Tables(user, local.for_each(clients, item), network))
        optimizer = local.optimizer(config, model)
        moments.append(() if fedcia.rebuilt else jax.vmap(optimizer.init)(tables[-1]))
    # The eigenvectors of the common table's similarity start the first subspace iteration.
    width = max(model.width for model in fedcia.models)
    table = local.init_items(key_item, items, width, config.init_scale)
    start = jax.random.normal(key_start, (items, fedcia.rank))
    common = similarity.stacked([table[None]], [jnp.ones(1)])
    pairs, energy = similarity.top_eigenpairs(common, start, iterations=8)
    table = table if fedcia.rebuilt else table[:, :0]
    support, bounds = supported_items(config, data, items), first_bounds(config, (), ())
    shared = Shared(jnp.int32(0), pairs, energy, table, support, bounds)
    return State(shared, tuple(tables), tuple(moments))


def grow(fedcia: FedCIA, state: State, was: Earlier, key: jax.Array, data: Data) -> State:
    """The server's similarity, none for new items yet, and the clients' tables, new items and users
    as `init` makes them; the optimisers start anew."""
    fresh, known = init(fedcia, key, data), state.shared
    vectors, values = fresh.shared.similarity  # of a rank that a small catalogue may have bounded
    old = known.similarity
    vectors = vectors.at[:, : len(old.values)].set(0)
    shared = fresh.shared._replace(
        rounds=known.rounds,
        similarity=Similarity(over(vectors, old.vectors), over(jnp.zeros_like(values), old.values)),
        energy=known.energy,
        table=over(fresh.shared.table, known.table),
    )
    users, items, _ = zip(*fresh.tables, strict=True)
    old_users, old_items, _ = zip(*state.tables, strict=True)
    users = users_over(users, data, old_users, was)
    items = items if fedcia.rebuilt else clients_over(items, data, old_items, was)
    return fresh._replace(shared=shared, tables=tuple(map(Tables, users, items)))


def groups(
    data: Data, models: tuple[ClientModel, ...], weighting: str
) -> list[tuple[ClientModel, Clients]]:
    """Buckets split by model, clients of a bucket dealt out in turn; weights as asked for."""
    if is_divided() and len(models) > 1:
        raise SettingError(
            f"model = {','.join(model.name for model in models)!r}: models are dealt out among "
            "clients of one machine, and these have machines of their own; give one model"
        )
    found = []
    for clients in (weighed_alike(data) if weighting == "uniform" else data).clients:
        for number, model in enumerate(models[: len(clients.client)]):
            part = jax.tree.map(lambda leaf, n=number: leaf[n :: len(models)], clients)
            found.append((model, part))
    return found


def aggregate(
    fedcia: FedCIA,
    shared: Shared,
    uploads: tuple[Any, ...],
    weights: tuple[jax.Array, ...],
    key: jax.Array,
) -> Shared:
    """The server's S, the mean similarity of the clients.

    Lies may leave a mean that no tables have, with a negative trace: S then stays what it was.
    """
    config, old = fedcia.config, shared.similarity
    if fedcia.additive or config.rule != "mean":
        if config.rule != "mean":
            uploads, weights = comparable(fedcia, old.vectors, uploads, weights)
        sketch, trace = combine(config.rule, uploads, weights, config.malicious)
        new = similarity.nystrom(sketch, old.vectors)
        energy = jnp.sum(new.values) / trace
    else:
        total = jnp.maximum(sum(weight.sum() for weight in weights), 1e-30)
        mean = similarity.stacked(uploads, [weight / total for weight in weights])
        if config.noise > 0:
            clients = sum(len(weight) for weight in weights)
            noise = laplace_mean(key, clients, fedcia.sizes.items, config.noise)
            mean = similarity.add(mean, similarity.dense(noise))
        new, energy = similarity.top_eigenpairs(mean, old.vectors, config.server_iterations)
    sound = (energy > 0) & jnp.isfinite(energy)
    new, energy = jax.tree.map(
        lambda fresh, kept: jnp.where(sound, fresh, kept), (new, energy), (old, shared.energy)
    )
    table = similarity.procrustes(shared.table, new, 1.0) if fedcia.rebuilt else shared.table
    rounds = shared.rounds + sound
    return shared._replace(rounds=rounds, similarity=new, energy=energy, table=table)


def comparable(
    fedcia: FedCIA, basis: jax.Array, uploads: tuple[Any, ...], weights: tuple[jax.Array, ...]
) -> tuple[tuple[Any, ...], tuple[jax.Array, ...]]:
    """Sketches of every client in one basis [I, R], and no weight for those that cannot be true.

    Factors lie in spaces of their own, so that no rule can compare their numbers.
    """
    if not fedcia.additive:
        sketched = jax.vmap(partial(similarity.sketch, basis=basis))
        uploads = tuple(map(sketched, uploads))
    true = [similarity.possible(sketch, trace, basis) for sketch, trace in uploads]
    return uploads, tuple(w * flags for w, flags in zip(weights, true, strict=True))


def laplace_mean(key: jax.Array, clients: int, items: int, scale: float) -> jax.Array:
    """The mean [I, I] of the paper's Laplace noise of all clients, made symmetric."""

    def add(total, key):
        return total + scale / clients * jax.random.laplace(key, (items, items)), None

    total, _ = jax.lax.scan(add, jnp.zeros((items, items)), jax.random.split(key, clients))
    return (total + total.T) / 2  # the antisymmetric part has no effect on an alignment


def step(fedcia: FedCIA, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """One round."""
    data = local.with_text(fedcia.config, data)
    known = supported(data, state.shared.support)
    parts = groups(known, fedcia.models, fedcia.config.weighting)
    done = federated_round(
        tuple(partial(train, fedcia, model, data.text) for model, _ in parts),
        partial(aggregate, fedcia),
        state.shared,
        tuple(zip(state.tables, state.moments, strict=True)),
        tuple(clients for _, clients in parts),
        key,
        cohort=fedcia.config,
        bounds=state.shared.bounds,
        additive=fedcia.additive and fedcia.config.rule == "mean",
    )
    shared = done.shared._replace(bounds=done.bounds)
    loss, distance = done.metrics
    metrics = Metrics(loss, distance, shared.energy, done.participants, done.non_finite)
    return State(shared, *zip(*done.private, strict=True)), metrics


def prepare(fedcia: FedCIA, state: State, data: Data) -> Any:
    """Align every client to the newest S, as it would on its next download, and encode."""
    data = supported(local.with_text(fedcia.config, data), state.shared.support)
    parts = groups(data, fedcia.models, fedcia.config.weighting)
    served = []
    for (model, clients), tables in zip(parts, state.tables, strict=True):
        if fedcia.rebuilt:
            item = local.for_each(clients, state.shared.table)
        else:
            align = lambda item, m=model: aligned(fedcia.config, m, item, data.text, state.shared)
            item = jax.vmap(align)(tables.item)
        served.append(tables._replace(item=item))
    own, buckets = zip(*parts, strict=True)
    dealt = data._replace(clients=buckets)
    return scoring.serve_models(fedcia.models, own, tuple(served), dealt, fedcia.sizes.users)


def newest_table(fedcia: FedCIA, state: State) -> jax.Array:
    """The item table of a client that joins now: a minimiser of ||E E^T - S||_F."""
    vectors, values = state.shared.similarity
    width = max(model.width for model in fedcia.models)
    return vectors[:, :width] * jnp.sqrt(values[:width])
