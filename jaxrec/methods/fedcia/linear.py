"""FedCIA for parameter-free models: GF-CF and EASE in one shot, up to lossless.

With R_c [U_c, I] a client's interactions, N = D_u^-1/2 R D_i^-1/2 and V_k the leading k right
singular vectors of N (Shen et al., CIKM 2021), GF-CF's item similarity is

    F = N^T N + low_pass D_i^-1/2 V_k V_k^T D_i^1/2,        score = R F.

- `form="paper"` (FedCIA, section 3): each client takes N_c, D_i and V_k from its own data;
  S = mean_c F_c and score = global_weight R_c S + R_c F_c. It loses 10-20 % of what GF-CF can do,
  for each client normalises by its own degrees.
- `form="lossless"`: item degrees are a secure sum, and so is N^T N = sum_c N_c^T N_c once every
  client normalises by them. The server then holds exactly the centralised model. The same sum
  of R_c^T R_c gives EASE in closed form: P = (G + ridge)^-1, B = -P / diag(P) with zero diagonal
  (Steck, WWW 2019). The sums must be secure ones: the Gram of a one-user client is its history.
- `sketch=r` > 0 never forms I x I. GF-CF: `passes` secure sums of N_c^T (N_c Omega) [I, r] give
  the r leading eigenpairs (subspace iteration). EASE: one secure sum gives the columns of the r
  most popular items, which are exact; the rest is Nystrom's approximation from them plus the
  diagonal that it lacks, known from the items' counts. Either model is applied by factors.

The paper's full SVD only adds null-space vectors; the thin one comes from a U_c x U_c Gram.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.federated import scoring, secure_sum
from jaxrec.federated.cooccurrence import item_counts
from jaxrec.federated.divided import is_divided, number_of_users, sum_over_clients
from jaxrec.federated.local import dense_rows
from jaxrec.federated.privacy import check_sum
from jaxrec.federated.private_mean import in_integers
from jaxrec.federated.sum_bytes import with_protocol
from jaxrec.federated.support import supported, supported_items
from jaxrec.methods.fedcia import order, similarity
from jaxrec.methods.fedcia.config import DENSE_LIMIT, LinearConfig, check_items
from jaxrec.models.collaborative import inverse_root, normalise
from jaxrec.ops import linalg
from jaxrec.types import Clients, Data, Method, Sizes, Traffic, Unavailable

# Added to the diagonal of the columns' own rows, which may be singular; and a part of its largest.
SLACK, ROUNDING = 0.01, 1e-6


class Model(NamedTuple):
    """Item-to-item weights: left @ right, or just `left` [I, I] where `right` is [0, I]."""

    left: jax.Array  # f32 [I, I] or [I, r]
    right: jax.Array  # f32 [0, I] or [r, I]


class Metrics(NamedTuple):
    energy: jax.Array  # share of the Gram's trace that the model holds


class Served(NamedTuple):
    """What scores are made of."""

    slot: jax.Array  # int32 [U]  a user's row
    rows: jax.Array  # bool [rows, I]  interactions, f32 where recency weighs them; paper: scores
    model: Model | None  # None: form = paper
    added: jax.Array | None = None  # f32 [rows, I]  what clients add by their rows' order


def make(config: LinearConfig, sizes: Sizes) -> Method:
    """Build the one-shot method; raises SettingError on settings that cannot work."""
    check_items(config, sizes)
    check_sum(config, sizes.clients)
    own = Unavailable("form = 'paper' has every client normalise by its own degrees")
    return Method(
        partial(init, config, sizes.items),
        partial(step, config, sizes.users, sizes.items),
        partial(prepare, config, sizes.users),
        partial(score, config),
        one_shot=True,
        traffic=traffic(config, sizes.items, sizes.clients),
        vectors=Unavailable(
            "what it knows of a user is the whole row of interactions, as long as the catalogue"
        ),
        fold_in=own if config.form == "paper" else partial(fold_in, config),
    )


PER_SKETCHED = {"ease": 8, "gfcf": 32}  # items for each column or eigenpair that is proposed
ROW_BYTES = 8.0  # of a user's and an item's number


def advice(config: LinearConfig, data: Data) -> str:
    """What to say where a client's part of a whole Gram is more than all rows of the federation."""
    items = 1 + max(int(clients.item.max()) for clients in data.clients)
    rows = ROW_BYTES * sum(int(clients.mask.sum()) for clients in data.clients)
    whole = 2.0 * items * (items + 1)
    sketch = max(config.singular_vectors, items // PER_SKETCHED[config.model])
    short = 4.0 * items * sketch * (config.passes if config.model == "gfcf" else 1)
    if whole <= rows or short >= whole or items > DENSE_LIMIT:
        return ""
    return (
        f"each client sends {whole / 1e6:,.3g} MB, and all rows of all clients are "
        f"{rows / 1e6:,.3g} MB; sketch = {sketch} sends {short / 1e6:,.3g} MB and is near the model"
    )


def init(config: LinearConfig, items: int, key: jax.Array, data: Data) -> Model:
    """Zero weights."""
    if not config.sketch:
        return Model(jnp.zeros((items, items)), jnp.zeros((0, items)))
    rank = config.sketch + (config.singular_vectors if config.model == "gfcf" else 0)
    return Model(jnp.zeros((items, rank)), jnp.zeros((rank, items)))


def step(
    config: LinearConfig, users: int, items: int, model: Model, data: Data, key: jax.Array
) -> tuple[Model, Metrics]:
    """The whole training, by secure sums."""
    whole = Metrics(jnp.float32(1))
    whole_rows = None if config.sketch or config.form == "paper" else users
    data = supported(data, supported_items(config, data, items, most=whole_rows))
    if config.form == "paper":
        return Model(_paper_mean(data, config, items), jnp.zeros((0, items))), whole
    graph = config.model == "gfcf"
    degree = item_counts(data, items) if graph else jnp.ones(items)
    if config.sketch and not graph:
        return _ease_of_columns(data, items, config, key)
    if config.sketch:
        start = jax.random.normal(key, (items, config.sketch))
        unit = _sketch_unit(users) if in_integers(config) else None
        key, key_rounding = jax.random.split(key)
        operator = _secure_sums(data, degree, normalise_users=True, unit=unit, key=key_rounding)
        pairs, energy = similarity.top_eigenpairs(operator, start, config.passes - 1)
        return _gfcf_factors(pairs, degree, config), Metrics(energy)
    integers = in_integers(config) and graph
    make = _normalised_gram_in_integers if integers else partial(_gram, normalise_users=graph)
    gram = make(data, degree)
    build = _gfcf if graph else _ease
    return Model(build(gram, degree, config, key), jnp.zeros((0, items))), whole


def prepare(config: LinearConfig, users: int, model: Model, data: Data) -> Served:
    """The users' rows laid end to end; in the paper's form their scores."""
    slot, items = scoring.user_slots(data, users), len(model.left)
    if config.form == "paper":
        scores = [model.left[:0]]
        for clients in data.clients:
            clients = linalg.after(scores[-1], clients)
            scores.append(_paper_scores(model.left, clients, config))
        return Served(slot, jnp.concatenate(scores), None)
    own = lambda clients: dense_rows(clients, items) > 0
    if config.recency:
        own = lambda clients: order.weighted_rows(clients, config.recency, items)
    rows = [jax.vmap(own)(clients) for clients in data.clients]
    rows = jnp.concatenate([r.reshape(-1, items) for r in rows])
    added = None
    if config.transitions:
        added = config.transitions * order.of_users(data, config.recency, items)
    return Served(slot, rows, model, added)


def score(config: LinearConfig, served: Served, users: jax.Array) -> jax.Array:
    """Scores f32 [B, I] of global user ids [B]."""
    slot, rows, model, added = served
    rows = rows[slot[users]]
    if model is None:
        return rows
    rows = rows.astype(jnp.float32)
    if config.sketch:
        # A low-rank B has no zero diagonal of its own: take an item's effect on itself out.
        itself = jnp.sum(model.left * model.right.T, 1)
        scores = rows @ model.left @ model.right - rows * itself
    else:
        scores = rows @ model.left
    return scores if added is None else scores + added[slot[users]]


def fold_in(config: LinearConfig, model: Model, data: Data) -> Served:
    """`prepare` for the users of `data`, whoever they are."""
    return prepare(config, scoring.user_places(data), model, data)


def traffic(config: LinearConfig, items: int, clients: int) -> Traffic:
    """float32; a symmetric matrix travels as its upper triangle, degrees as one vector each way.

    A sketch of GF-CF starts from a public seed: clients get the bases after the first one and at
    last the eigenpairs, and send products and their part of the trace. One of EASE is some columns
    of the Gram up, and factors and diagonal down, once the items' counts are known.
    """
    if config.form == "paper":
        return Traffic(up=4.0 * items**2, down=4.0 * items**2)  # the low-pass part is not symmetric
    setup = int(config.model == "gfcf") + int(config.support > 1)
    counts, sums = 4.0 * items * setup, 1
    if config.sketch and config.model == "ease":
        up, setup, counts = 4.0 * items * config.sketch, 1, 4.0 * items
        plain = Traffic(up=up, down=up + 4.0 * items)
    elif config.sketch:
        sums = config.passes
        up = 4.0 * items * config.sketch * sums
        plain = Traffic(up=up + 4, down=up + 4.0 * config.sketch)
    else:
        plain = Traffic(up=2.0 * items * (items + 1), down=4.0 * items**2)
    plain = plain._replace(setup_up=counts, setup_down=counts)
    return with_protocol(config, plain, clients, setup=setup + sums - 1)


def _gram(data: Data, degree: jax.Array, *, normalise_users: bool) -> jax.Array:
    """sum_c X_c^T X_c [I, I], stacked rows in one product a bucket, never C matrices of I x I."""
    items = len(degree)
    total = jnp.zeros((items, items))
    for clients in data.clients:
        rows = jax.vmap(lambda c: dense_rows(c, items))(clients).reshape(-1, items)
        rows = normalise(rows, degree) if normalise_users else rows
        total += rows.T @ rows
    return sum_over_clients(total)


def _normalised_gram_in_integers(data: Data, degree: jax.Array) -> jax.Array:
    """sum_c N_c^T N_c [I, I] by a sum of integers: users' rows weigh 2^20 / d_u, rounded.

    Two products of ten bits each are exact in floats. The server divides by the items' degrees.
    """
    items = len(degree)
    users = number_of_users(sum(clients.users.size for clients in data.clients))
    units = 2 ** min(20, 30 - math.ceil(math.log2(users + 1)))
    total = jnp.zeros((items, items), jnp.int32)
    for clients in data.clients:
        rows = jax.vmap(lambda c: dense_rows(c, items))(clients).reshape(-1, items)
        weight = jnp.round(units / jnp.maximum(rows.sum(1, keepdims=True), 1)).astype(jnp.int32)
        rows = rows.astype(jnp.int32)
        high, low = weight // 1024 * rows, weight % 1024 * rows
        square = partial(secure_sum.product_sum, right=rows, most=32)  # 32^2 is 1024 times 1
        total += 1024 * square(high) + square(low)
    scale = inverse_root(degree)
    return scale[:, None] * (sum_over_clients(total) / units) * scale


def _sketch_unit(users: int) -> float:
    """A public unit of a pass: no user's part of a product is longer than the largest integer."""
    return 1 / secure_sum.headroom(users)


def _secure_sums(
    data: Data,
    degree: jax.Array,
    *,
    normalise_users: bool,
    unit: float | None = None,
    key: jax.Array,
) -> similarity.Operator:
    """X -> sum_c N_c^T (N_c X), one secure sum a pass, over interactions only: O(N r) each.

    With a `unit` users' parts are integers, rounded at random.
    """

    def edges(clients: Clients):
        count, users = clients.users.shape
        row = clients.user + users * jnp.arange(count)[:, None]  # [C, N]
        size = jnp.zeros(count * users).at[row].add(clients.mask)
        weight = clients.mask * inverse_root(degree)[clients.item]
        if normalise_users:
            weight = weight * inverse_root(size)[row]
        return row.reshape(-1), clients.item.reshape(-1), weight.reshape(-1), count * users

    def apply(right: jax.Array) -> tuple[jax.Array, jax.Array]:
        product, form = jnp.zeros_like(right), jnp.zeros((right.shape[1],) * 2)
        for clients in data.clients:
            row, item, weight, users = edges(clients)
            inner = jax.ops.segment_sum(weight[:, None] * right[item], row, users)
            part = weight[:, None] * inner[row]
            if unit is not None:
                # A client on its own machine has the key of all, and needs numbers of its own.
                own = jax.random.fold_in(key, clients.client[0]) if is_divided() else key
                dither = secure_sum.independent_dither(own, part.shape)
                part = secure_sum.to_integers(part, jnp.float32(unit), secure_sum.LARGEST, dither)
                product = product.astype(jnp.int32)
            product = product.at[item].add(part)
            form += inner.T @ inner
        if unit is None:
            return sum_over_clients((product, form))
        product = sum_over_clients(product) * unit
        form = right.T @ product  # the server has no other
        return product, (form + form.T) / 2

    trace = sum_over_clients(sum(jnp.sum(edges(clients)[2] ** 2) for clients in data.clients))
    return similarity.Operator(apply, jnp.asarray(trace), summed=True)


def _low_pass(
    vectors: jax.Array, degree: jax.Array, config: LinearConfig
) -> tuple[jax.Array, jax.Array]:
    """low_pass D^-1/2 V_k V_k^T D^1/2 as factors [I, k] and [k, I]; vectors [I, k]."""
    left = config.low_pass * inverse_root(degree)[:, None] * vectors
    return left, (jnp.sqrt(degree)[:, None] * vectors).T


def _gfcf(gram: jax.Array, degree: jax.Array, config: LinearConfig, key: jax.Array) -> jax.Array:
    k = config.singular_vectors
    start = jax.random.normal(key, (len(gram), min(2 * k + 16, len(gram))))
    pairs, _ = similarity.top_eigenpairs(similarity.dense(gram), start, iterations=24)
    left, right = _low_pass(pairs.vectors[:, :k], degree, config)
    return gram + left @ right


def _gfcf_factors(pairs: similarity.Similarity, degree: jax.Array, config: LinearConfig) -> Model:
    left, right = _low_pass(pairs.vectors[:, : config.singular_vectors], degree, config)
    return Model(
        jnp.concatenate([pairs.vectors * pairs.values, left], axis=1),
        jnp.concatenate([pairs.vectors.T, right]),
    )


def _ease(gram: jax.Array, degree: jax.Array, config: LinearConfig, key: jax.Array) -> jax.Array:
    return linalg.ease(gram, config.ridge)


def _ease_of_columns(
    data: Data, items: int, config: LinearConfig, key: jax.Array
) -> tuple[Model, Metrics]:
    """EASE from the Gram's columns of the r most popular items and its diagonal.

    With Y [I, r] those columns and C those rows of Y, G is near Y C^-1 Y^T + diag(d), d being what
    the first term's diagonal lacks. So (G + ridge)^-1 = diag(1 / e) - W W^T, e = d + ridge, by
    Woodbury's identity, and B_ij = W_i . W_j / (1 / e_j - |W_j|^2) off the diagonal.
    """
    counts = item_counts(data, items)
    _, popular = jax.lax.top_k(counts, config.sketch)
    chosen = jnp.zeros((items, config.sketch)).at[popular, jnp.arange(config.sketch)].set(1)
    gram = _secure_sums(data, jnp.ones(items), normalise_users=False, key=key)
    columns, _ = gram.apply(chosen)  # whole numbers: the sum is exact
    slack = SLACK + ROUNDING * jnp.max(counts)
    square = columns[popular] + slack * jnp.eye(config.sketch)
    triangle = jax.scipy.linalg.solve_triangular
    part = triangle(jnp.linalg.cholesky(square), columns.T, lower=True).T  # Y C^-1 Y^T = Z Z^T
    rest = jnp.maximum(counts - jnp.sum(part**2, axis=1), 0) + config.ridge
    scaled = part / rest[:, None]
    inner = jnp.eye(config.sketch) + part.T @ scaled
    left = triangle(jnp.linalg.cholesky(inner), scaled.T, lower=True).T
    diagonal = 1 / rest - jnp.sum(left**2, axis=1)
    held = jnp.sum(counts[popular]) / jnp.maximum(jnp.sum(counts), 1)
    return Model(left, (left / diagonal[:, None]).T), Metrics(held)


def _client_factors(clients: Clients, config: LinearConfig, items: int):
    """One client's N_c [U, I] and low-pass factors [I, k], [k, I], k = min(k, U)."""
    rows = dense_rows(clients, items)
    degree = rows.sum(0)
    normalised = normalise(rows, degree)
    values, vectors = linalg.eigh(normalised @ normalised.T)  # [U], [U, U]
    k = min(config.singular_vectors, len(rows))
    # Eigenvalues of N N^T lie in [0, 1]; below the floor they are the null space and its noise.
    scale = jnp.where(values > 1e-6, jax.lax.rsqrt(jnp.maximum(values, 1e-6)), 0.0)
    right_vectors = normalised.T @ (vectors * scale)[:, ::-1][:, :k]  # [I, k]
    return rows, normalised, *_low_pass(right_vectors, degree, config)


def _paper_mean(data: Data, config: LinearConfig, items: int) -> jax.Array:
    """S = mean_c F_c [I, I] over clients with interactions, one stacked product a bucket."""
    total = jnp.zeros((items, items))
    for clients in data.clients:
        clients = linalg.after(total, clients)
        _, normalised, left, right = jax.vmap(lambda c: _client_factors(c, config, items))(clients)
        normalised = normalised.reshape(-1, items)
        left = left.transpose(0, 2, 1).reshape(-1, items)  # [C k, I]
        total += jnp.concatenate([normalised, left]).T @ jnp.concatenate(
            [normalised, right.reshape(-1, items)]
        )
    present = sum(jnp.sum(clients.weight > 0) for clients in data.clients)
    total, present = sum_over_clients((total, present))
    return total / jnp.maximum(present, 1)


def _paper_scores(mean: jax.Array, clients: Clients, config: LinearConfig) -> jax.Array:
    """global_weight R_c S + R_c F_c [C U, I] for all users of a bucket."""
    items = len(mean)
    rows, normalised, left, right = jax.vmap(lambda c: _client_factors(c, config, items))(clients)
    own = rows @ normalised.swapaxes(1, 2) @ normalised + rows @ left @ right
    return config.global_weight * (rows.reshape(-1, items) @ mean) + own.reshape(-1, items)
