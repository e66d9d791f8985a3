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
  eigenbasis of S (`ops/similarity.py`); it ends on a cone, so it keeps moving by its step size.
- `upload="sketch"` sends E_c (E_c^T V) instead. It is additive, so a secure sum hides every
  client; it is the form to use when a client is one user.
- `tables="rebuilt"` lets clients forget E_c between rounds and start from S, so memory does not
  grow with the number of clients.
- Losses act on the inner product, over the full catalogue, instead of on the elementwise product.
- The authors' Laplace noise has neither clipping nor sensitivity: `noise` reproduces it for parity
  and promises no privacy.

Parameter-free models (gfcf, ease) have nothing to train: see `fedcia_linear.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.federated import local
from jaxrec.federated.engine import Cohort, federated_round, weighted_mean
from jaxrec.methods import fedcia_linear
from jaxrec.models.collaborative import Tables
from jaxrec.ops import similarity
from jaxrec.ops.similarity import Similarity
from jaxrec.types import Clients, Data, Method, SettingError, Sizes, Traffic

RUN = {"rounds": 40, "evaluate_every": 2, "patience": 4}


@dataclass(frozen=True)
class Config(fedcia_linear.LinearConfig, local.LocalConfig):
    """Settings of FedCIA."""

    model: str = "mf"
    """The clients' model: mf, lightgcn, gfcf or ease. A list such as mf:64,lightgcn:64,mf:32 deals
    models and widths out to the clients in turn; they share nothing but the similarity."""
    layers: int = 1
    """LightGCN's layers."""
    local_steps: int = 5
    """Gradient steps a client takes per round, each over all of its interactions."""
    rank: int = 64
    """R, eigenpairs of the server's similarity that are kept and sent."""
    align: Literal["procrustes", "gradient"] = "procrustes"
    """procrustes: towards the nearest exact minimiser; gradient: the paper's descent to it."""
    align_step: float = 1.0
    """How far a procrustes alignment goes, a fraction of the way."""
    align_steps: int = 100
    """Gradient steps of an alignment."""
    align_rate: float = 0.1
    """Step size of the gradient steps."""
    align_decay: float = 0.0
    """L2 penalty during the alignment."""
    server_iterations: int = 2
    """Subspace iterations per round, started from the last round's eigenvectors."""
    upload: Literal["factor", "sketch"] = "factor"
    """factor: the rotated item table; sketch: its product with the eigenvectors, a secure sum."""
    tables: Literal["kept", "rebuilt"] = "kept"
    """kept: a client keeps its item table between rounds; rebuilt: it starts from S."""
    weighting: Literal["uniform", "interactions"] = "uniform"
    """A client's weight in the mean: the same for all (the paper), or its train interactions."""
    noise: float = 0.0
    """Scale of the paper's Laplace noise on every entry of A_c; promises no privacy."""
    participation: float = 1.0
    """Chance of a client to be in a round, 0 to 1."""
    dropout: float = 0.0
    """Chance of a chosen client to fail before its upload arrives, 0 to 1."""
    block: int = 0
    """Clients computed at once, a bound on memory; 0 = all of a bucket."""
    memory: float = 16.0
    """GB that kept item tables, their Adam moments and uploads may take; more is refused."""


class Shared(NamedTuple):
    rounds: jax.Array  # int32 []  rounds so far; before the first there is nothing to align to
    similarity: Similarity  # S, vectors [I, R] and values [R]
    energy: jax.Array  # f32 []  share of S's trace that the R pairs hold
    table: jax.Array  # f32 [I, D]  S as an item table where clients rebuild theirs, else [I, 0]


class State(NamedTuple):
    shared: Shared
    tables: tuple[
        Tables, ...
    ]  # a group of clients: [C, U, D] and [C, I, D]; rebuilt: item [C, 0, D]
    moments: tuple[Any, ...]  # Adam's, the same shapes; rebuilt: none


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction after alignment
    distance: jax.Array  # mean ||E_c E_c^T - S||_F / ||S||_F after alignment
    energy: jax.Array  # share of S's trace that is kept
    participants: jax.Array  # clients whose upload arrived


class Model(NamedTuple):
    width: int
    layers: int  # 0: matrix factorisation


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    if config.model in ("gfcf", "ease"):
        return fedcia_linear.make(config, sizes)
    local.check(config)
    models = _models(config)
    _check_memory(config, models, sizes)
    cohort = Cohort.checked(config.participation, config.dropout, config.block)
    optimizer = optax.adam(config.learning_rate)
    rank = min(config.rank, sizes.items)
    rebuilt = config.tables == "rebuilt"
    additive = config.upload == "sketch"

    def init(key: jax.Array, data: Data) -> State:
        key_item, key_user, key_start = jax.random.split(key, 3)
        tables, moments = [], []
        for model, clients in _groups(data, models, config.weighting):
            user = local.init_users(key_user, clients, model.width, config.init_scale)
            item = local.init_items(key_item, sizes.items, model.width, config.init_scale)
            item = item[:0] if rebuilt else item
            tables.append(Tables(user, jnp.tile(item, (len(user), 1, 1))))
            moments.append(() if rebuilt else jax.vmap(optimizer.init)(tables[-1]))
        # The eigenvectors of the common table's similarity start the first subspace iteration.
        width = max(model.width for model in models)
        table = local.init_items(key_item, sizes.items, width, config.init_scale)
        start = jax.random.normal(key_start, (sizes.items, rank))
        first, energy = similarity.top_eigenpairs(
            similarity.stacked([table[None]], [jnp.ones(1)]), start, iterations=8
        )
        shared = Shared(jnp.int32(0), first, energy, table if rebuilt else table[:, :0])
        return State(shared, tuple(tables), tuple(moments))

    def aligned(item: jax.Array, shared: Shared) -> jax.Array:
        def align(item):
            if config.align == "procrustes":
                return similarity.procrustes(item, shared.similarity, config.align_step)
            return similarity.align(
                item,
                shared.similarity,
                steps=config.align_steps,
                learning_rate=config.align_rate,
                weight_decay=config.align_decay,
            )

        return jax.lax.cond(shared.rounds > 0, align, lambda item: item, item)

    def train(model: Model, shared: Shared, private, clients: Clients, key: jax.Array):
        key_train, key_rotate = jax.random.split(key)
        tables, moments = private
        item = shared.table if rebuilt else aligned(tables.item, shared)
        start = Tables(tables.user, item)
        new, new_moments, loss = local.train(
            start,
            optimizer.init(start) if rebuilt else moments,
            clients,
            key_train,
            optimizer=optimizer,
            config=config,
            layers=model.layers,
        )
        if additive:
            sketch = new.item @ (new.item.T @ shared.similarity.vectors)
            upload = sketch, jnp.sum(new.item**2)  # and A_c's trace
        else:
            upload = similarity.rotate(new.item, key_rotate)
        norm = jnp.linalg.norm(shared.similarity.values)
        distance = similarity.distance(item, shared.similarity) / norm
        if rebuilt:
            new, new_moments = Tables(new.user, tables.item), ()
        return upload, (new, new_moments), (loss, distance)

    def aggregate(shared: Shared, uploads, weights, key: jax.Array) -> Shared:
        old = shared.similarity
        if additive:
            sketch, trace = weighted_mean(uploads, weights)
            new = similarity.nystrom(sketch, old.vectors)
            energy = jnp.sum(new.values) / jnp.maximum(trace, 1e-30)
        else:
            total = jnp.maximum(sum(weight.sum() for weight in weights), 1e-30)
            mean = similarity.stacked(uploads, [weight / total for weight in weights])
            if config.noise > 0:
                mean = similarity.add(mean, similarity.dense(_noise(weights, key)))
            new, energy = similarity.top_eigenpairs(mean, old.vectors, config.server_iterations)
        table = similarity.procrustes(shared.table, new, 1.0) if rebuilt else shared.table
        return Shared(shared.rounds + 1, new, energy, table)

    def _noise(weights, key):
        clients = sum(len(weight) for weight in weights)
        shape = (sizes.items, sizes.items)

        def add(total, key):
            return total + config.noise / clients * jax.random.laplace(key, shape), None

        total, _ = jax.lax.scan(add, jnp.zeros(shape), jax.random.split(key, clients))
        return (total + total.T) / 2  # the antisymmetric part has no effect on an alignment

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        groups = _groups(data, models, config.weighting)
        shared, private, (loss, distance), participants = federated_round(
            tuple(jax.tree_util.Partial(train, model) for model, _ in groups),
            aggregate,
            state.shared,
            tuple(zip(state.tables, state.moments, strict=True)),
            tuple(clients for _, clients in groups),
            key,
            cohort=cohort,
            additive=additive,
        )
        metrics = Metrics(loss, distance, shared.energy, participants)
        return State(shared, *zip(*private, strict=True)), metrics

    def prepare(state: State, data: Data) -> local.Served:
        """Align every client to the newest S, as it would on its next download, and encode."""
        groups = _groups(data, models, config.weighting)
        served = []
        for (model, clients), tables in zip(groups, state.tables, strict=True):
            if rebuilt:
                item = jnp.tile(state.shared.table, (len(clients.client), 1, 1))
            else:
                item = jax.vmap(lambda item: aligned(item, state.shared))(tables.item)
            served.append(local.encode_bucket(Tables(tables.user, item), clients, model.layers))
        return local.serve(
            Data(tuple(clients for _, clients in groups)), tuple(served), sizes.users
        )

    width = sum(model.width for model in models) / len(models)
    traffic = Traffic(
        up=4.0 * sizes.items * rank + 4 if additive else 4.0 * sizes.items * width,
        down=4.0 * rank * (sizes.items + 1),
    )

    def newest(state: State) -> jax.Array:
        """The item table of a client that joins now: a minimiser of ||E E^T - S||_F."""
        vectors, values = state.shared.similarity
        width = max(model.width for model in models)
        return vectors[:, :width] * jnp.sqrt(values[:width])

    fold_in = local.folding(config, max(model.layers for model in models), newest)
    return Method(
        init, step, prepare, local.score, traffic=traffic, vectors=local.vectors, fold_in=fold_in
    )


def _models(config: Config) -> tuple[Model, ...]:
    """The models of `config.model`; raises SettingError on what it does not know."""
    models = []
    for part in config.model.split(","):
        name, _, width = part.strip().partition(":")
        if name not in ("mf", "lightgcn") or not (width.isdigit() or not width):
            raise SettingError(
                f"model = {config.model!r}: {part!r} is none of mf, lightgcn, gfcf, ease; "
                "several models are written mf:64,lightgcn:64,mf:32"
            )
        models.append(Model(int(width or config.width), config.layers if name == "lightgcn" else 0))
    if min(model.width for model in models) < 1 or config.rank < 1:
        raise SettingError(f"model = {config.model!r}, rank = {config.rank}: must be at least 1")
    if config.tables == "rebuilt" and len({model.width for model in models}) > 1:
        raise SettingError("tables = 'rebuilt': needs models of one width; use tables = 'kept'")
    if config.upload == "sketch" and config.noise > 0:
        raise SettingError("noise: the paper adds it to whole similarities; use upload = 'factor'")
    if not 0 < config.align_step <= 1:
        raise SettingError(f"align_step = {config.align_step}: must lie in (0, 1]")
    return tuple(models)


def _check_memory(config: Config, models: tuple[Model, ...], sizes: Sizes) -> None:
    width = sum(model.width for model in models) / len(models)
    kept = 4e-9 * 4 * sizes.clients * sizes.items * width  # table, two moments, upload
    if config.tables == "kept" and kept > config.memory:
        raise SettingError(
            f"{sizes.clients:,} clients that keep {sizes.items:,} x {width:.0f} item tables take "
            f"{kept:.1f} GB, above memory = {config.memory}; set tables = 'rebuilt', "
            "upload = 'sketch', block = 128 (and participation below 1 to save time)"
        )


def _groups(data: Data, models: tuple[Model, ...], weighting: str) -> list[tuple[Model, Clients]]:
    """Buckets split by model, clients of a bucket dealt out in turn; weights as asked for."""
    groups = []
    for clients in data.clients:
        if weighting == "uniform":
            clients = clients._replace(weight=(clients.weight > 0).astype(jnp.float32))
        for number, model in enumerate(models[: len(clients.client)]):
            part = jax.tree.map(lambda leaf, n=number: leaf[n :: len(models)], clients)
            groups.append((model, part))
    return groups
