"""FedCIA's matrix factorisation by Newton steps: clients say how similarities should change.

The server holds S = V L V^T of rank D, whose item table is E = V L^1/2. A round:

    users   x_u = argmin of u's weighted square loss, in closed form      (ops/least_squares.py)
    client  g_c = sum_u r_u x_u^T [I, D], r_ui = c_ui (x_u . e_i - R_ui)  the loss's slope in E
    upload  Y_c = (E g_c^T + g_c E^T) V [I, D]                            the slope's similarity
    server  Y = sum_c Y_c  ->  g, X^T X                                   `slope`
            E <- E - (g + l E) ((1 + w) / 2 X^T X + l)^-1,  S <- E E^T

A client need not hold E in the server's frame: with E Q in its place, Q [D, D] a rotation of its
own, x, g and what it uploads are the same. The loss depends on E E^T alone, so nothing is lost:
E^T g_c is symmetric where users stand at their optimum, and Y tells g. No c_ui exceeds 1, so the
matrix in the last line is more than half of every item's Hessian: with all clients in a round,
their loss never rises.

What differs from the paper, and why: its clients descend from S by themselves, each along its own
rows, and S becomes the mean of where they arrive; the mean of E_c E_c^T is then above the
similarity of their mean step, by the steps' variance. Here nobody moves before all are heard, and
no client keeps anything between rounds. Rows of items that a client does not have all change by one
D x D matrix (`Touched`), so that in clear a sum over clients costs what their rows do.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.federated import local, scoring
from jaxrec.federated.aggregate import combine, descending
from jaxrec.federated.cohort import weighed_alike
from jaxrec.federated.divided import sum_over_clients
from jaxrec.federated.engine import federated_round
from jaxrec.federated.private_mean import Bounds, first_bounds
from jaxrec.federated.sum_bytes import with_protocol
from jaxrec.federated.support import supported, supported_items
from jaxrec.federated.uploads import Table, Touched, spread
from jaxrec.methods.fedcia import order
from jaxrec.methods.fedcia.config import Config, client_models
from jaxrec.methods.fedcia.similarity import Similarity
from jaxrec.models.collaborative import Tables
from jaxrec.ops import least_squares, linalg
from jaxrec.ops.growth import over
from jaxrec.types import Attendance, Clients, Data, Earlier, Method, Sizes, Traffic, Unavailable

NO_VECTORS = Unavailable("transitions are added to its inner products; set transitions = 0")
# Of a step, for a small cohort, whose mean differs from round to round.
LEAST_PART = 0.2
TINY = 1e-6  # of the largest root: a direction below it is rounding


class State(NamedTuple):
    similarity: Similarity  # S, vectors [I, D] and values [D]
    support: jax.Array | None  # bool [I]  items that enough users have; None: all are learned
    bounds: Bounds | None  # what uploads are measured with


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction of the fitted users, before the round
    participants: jax.Array  # clients whose upload arrived
    non_finite: jax.Array  # those of them that were dropped: some number was not finite


class Newton(NamedTuple):
    """The fixed parts of the method."""

    config: Config
    sizes: Sizes

    @property
    def width(self) -> int:
        return min(client_models(self.config)[0].width, self.sizes.items)


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`."""
    newton = Newton(config, sizes)
    method = Method(
        partial(init, newton),
        partial(step, newton),
        partial(prepare, newton),
        scoring.score,
        traffic=traffic(newton),
        attendance=lambda metrics: Attendance(metrics.participants),
        vectors=scoring.vectors,
        fold_in=partial(fold_in, config),
        grow=partial(grow, newton),
    )
    return method._replace(score=score, vectors=NO_VECTORS) if config.transitions else method


def traffic(newton: Newton) -> Traffic:
    """A sketch [I, D] up, the eigenpairs down; before, which items have support; float32."""
    config, sizes, width = newton.config, newton.sizes, newton.width
    counts = 4.0 * sizes.items * (config.support > 1)
    plain = Traffic(
        up=4.0 * sizes.items * width,
        down=4.0 * width * (sizes.items + 1),
        setup_up=counts,
        setup_down=counts,
    )
    setup = int(config.support > 1)
    return with_protocol(config, plain, sizes.clients, cohort=config.participation, setup=setup)


def init(newton: Newton, key: jax.Array, data: Data) -> State:
    """The similarity of a random item table."""
    config, items = newton.config, newton.sizes.items
    table = local.init_items(key, items, newton.width, config.init_scale)
    return State(of_table(table), supported_items(config, data, items), first_bounds(config, ()))


def of_table(table: jax.Array) -> Similarity:
    """E E^T of a table E [I, D]."""
    vectors, roots, _ = linalg.svd(table)
    return Similarity(vectors, roots**2)


def table_of(similarity: Similarity) -> jax.Array:
    """The item table E = V L^1/2 [I, D] of a similarity."""
    return similarity.vectors * jnp.sqrt(similarity.values)


def grow(newton: Newton, state: State, was: Earlier, key: jax.Array, data: Data) -> State:
    """The server's similarity, none for new items yet."""
    fresh = init(newton, key, data)
    old = state.similarity
    table = over(jnp.zeros((newton.sizes.items, newton.width)), table_of(old))
    return fresh._replace(similarity=of_table(table))


def users(
    config: Config, similarity: Similarity, clients: Clients, recency: float = 0.0
) -> jax.Array:
    """One client's users [U, D], each at the optimum of its loss, in which rows count by age."""
    rows = jax.ops.segment_sum(clients.mask * 1.0, clients.user, len(clients.users))
    return least_squares.users(
        table_of(similarity),
        clients,
        jnp.diag(similarity.values),
        negative_weight=config.negative_weight,
        l2=config.l2_user * (1 + rows / config.l2_user_rows),
        weights=local.row_weights(clients, recency) if recency else None,
    )


def train(
    config: Config,
    similarity: Similarity,
    private: Any,
    clients: Clients,
    key: jax.Array,
) -> tuple[Touched, Any, jax.Array]:
    """One client fits its users; its upload is the slope g [I, D] as rows and E times a matrix."""
    item, weight = table_of(similarity), config.negative_weight
    user = users(config, similarity, clients)
    chooser = user[clients.user]  # [N, D]
    scores = jnp.sum(chooser * item[clients.item], axis=1)
    residual = jnp.where(clients.mask, (1 - weight) * scores - 1, 0)
    inner = user.T @ user
    squares = jnp.sum(jnp.where(clients.mask, (scores - 1) ** 2 - weight * scores**2, 0))
    loss = weight * jnp.vdot(jnp.diagonal(inner), similarity.values) + squares
    rows = jnp.maximum(clients.mask.sum(), 1)
    upload = Touched(clients.item, residual[:, None] * chooser, weight * inner, len(item))
    return upload, private, loss / rows


def differential(similarity: Similarity, slope: jax.Array) -> jax.Array:
    """Y = (E g^T + g E^T) V [I, D] for a slope g [I, D] of S's table E = V L^1/2."""
    roots = jnp.sqrt(similarity.values)
    return similarity.vectors * roots @ (slope.T @ similarity.vectors) + slope * roots


def sent(similarity: Similarity, upload: Touched) -> jax.Array:
    """What one client sends in place of its rows."""
    return differential(similarity, slope_of(similarity, spread(upload)))


def slope_of(similarity: Similarity, table: Table) -> jax.Array:
    """The slope g [I, D] of rows and of what all rows of E share."""
    return table.rows + table_of(similarity) @ table.common


def slope(similarity: Similarity, differential: jax.Array) -> jax.Array:
    """The slope g [I, D] that a differential Y says, E^T g being symmetric.

    With P = V^T g and l the roots of L, M = V^T Y has entries l_i P_ji + P_ij l_j, and symmetry is
    l_i P_ij = l_j P_ji: so P_ij = M_ij l_j / (l_i^2 + l_j^2). Outside of V, Y is g L^1/2.
    """
    vectors, roots = similarity.vectors, jnp.sqrt(similarity.values)
    least = TINY * roots[0] + 1e-30
    inside = vectors.T @ differential
    squares = roots[:, None] ** 2 + roots**2
    form = (inside + inside.T) / 2 * roots / jnp.maximum(squares, least**2)
    return vectors @ form + (differential - vectors @ inside) / jnp.maximum(roots, least)


def aggregate(
    newton: Newton,
    members: jax.Array,
    similarity: Similarity,
    uploads: tuple[Any, ...],
    weights: tuple[jax.Array, ...],
    key: jax.Array,
) -> Similarity:
    """The server's Newton step, from the mean over clients times their number."""
    config = newton.config
    if config.rule != "mean":
        weights = descending(uploads, weights, similarity.vectors)
    mean = combine(config.rule, uploads, weights, config.malicious)
    known = isinstance(mean, Table)
    found = members * (slope_of(similarity, mean) if known else slope(similarity, mean))
    return moved(config, similarity, found)


def moved(config: Config, similarity: Similarity, slope: jax.Array) -> Similarity:
    """S after a step from the slope g [I, D] of all clients' loss."""
    table = table_of(similarity)
    form = -table.T @ slope / config.l2_user  # X^T X, penalties included: it is symmetric
    values, turn = linalg.eigh((form + form.T) / 2)
    curvature = (1 + config.negative_weight) / 2 * jnp.maximum(values, 0) + config.l2_item
    change = ((slope + config.l2_item * table) @ turn / curvature) @ turn.T
    return of_table(table - max(config.participation, LEAST_PART) * change)


def step(newton: Newton, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """One round."""
    config, similarity = newton.config, state.similarity
    data = weighed_alike(supported(data, state.support))
    members = sum_over_clients(jnp.stack([clients.weight.sum() for clients in data.clients]).sum())
    done = federated_round(
        (partial(train, config),) * len(data.clients),
        partial(aggregate, newton, members),
        similarity,
        ((),) * len(data.clients),
        data.clients,
        key,
        cohort=config,
        bounds=state.bounds,
        additive=config.rule == "mean",
        product=partial(sent, similarity),
    )
    metrics = Metrics(done.metrics, done.participants, done.non_finite)
    return State(done.shared, state.support, done.bounds), metrics


def fitted(config: Config, state: State, data: Data) -> tuple[Tables, ...]:
    """Every client's users, at their optimum, beside the items."""
    item = table_of(state.similarity)
    fit = partial(users, config, state.similarity, recency=config.recency)
    data = supported(data, state.support)
    return tuple(Tables(jax.lax.map(fit, clients), item) for clients in data.clients)


class Served(NamedTuple):
    """Vectors, and what clients add to their inner products by the order of their rows."""

    vectors: scoring.Served
    added: jax.Array  # f32 [rows, I]


def prepare(newton: Newton, state: State, data: Data) -> Any:
    """Every user of the federation, fitted and laid out for scoring."""
    return served(newton.config, state, data, newton.sizes.users)


def fold_in(config: Config, state: State, data: Data) -> Any:
    """`prepare` for the users of `data`, whoever they are."""
    return served(config, state, data, scoring.user_places(data))


def served(config: Config, state: State, data: Data, number: int) -> scoring.Served | Served:
    """So many users, fitted and laid out for scoring."""
    vectors = scoring.serve(data, fitted(config, state, data), number)
    if not config.transitions:
        return vectors
    data = supported(data, state.support)
    added = order.of_users(data, config.recency, len(state.similarity.vectors))
    return Served(vectors, config.transitions * added)


def score(served: Served, users: jax.Array) -> jax.Array:
    """Scores f32 [B, I] of global user ids [B]."""
    return scoring.score(served.vectors, users) + served.added[served.vectors.slot[users]]
