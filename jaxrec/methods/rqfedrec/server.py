"""What the server of RQFedRec does: what it sends, its step on the codebooks, a refresh of codes.

Gates act here, on what is broadcast, so clients know of none.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec.federated import catalogue, codecs
from jaxrec.federated.aggregate import combine, descending
from jaxrec.federated.catalogue import Catalogue
from jaxrec.federated.private_mean import first_bounds
from jaxrec.methods.rqfedrec.codes import refreshed_codes, ungated
from jaxrec.methods.rqfedrec.config import Config
from jaxrec.methods.rqfedrec.state import Broadcast, Shared
from jaxrec.ops import fold_in, quantize
from jaxrec.types import Data

MOST_STEPS = 3.0  # of a rare code, in those of a code of the mean share
ANCHORS = 4096  # items that the curvature is taken on, whatever the catalogue


def optimizer(config: Config) -> optax.GradientTransformation:
    """The server's, of codebooks, gates and context."""
    return optax.adam(config.server_learning_rate)


def initial_gates(config: Config) -> jax.Array:
    """Gates [channels] before the first round, as they are stored."""
    gates = jnp.ones(config.number_of_channels)
    return gates.at[0].set(config.semantic_weight) if len(gates) > 1 else gates


def initial_shared(
    config: Config,
    codes: Any,
    codebooks: jax.Array,
    counts: jax.Array,
    recent: jax.Array,
    text: jax.Array,
    key: jax.Array,
) -> Shared:
    """What the server knows before the first round; codebooks [P, K, D] are as they are served.

    `counts` [I] are of all train rows, `recent` [I] of rows by what they count; `text` is [I, T].
    """
    start = codebooks
    popularity = jnp.log(recent + config.popularity_prior) * config.popularity
    gates = initial_gates(config)
    if len(gates) > 1:
        codebooks = ungated(codebooks, code_gates(config, jnp.int32(0), gates))
    levels, *rest = codebooks.shape
    context = jnp.zeros((levels if config.next_rows else 0, *rest))
    number = min(ANCHORS, len(counts))
    anchors = jax.random.choice(key, len(counts), (number,), p=counts + 1e-9)
    return Shared(
        jnp.int32(0),
        codes,
        codebooks,
        start,
        context,
        gates,
        optimizer(config).init((codebooks, gates, context)),
        text,
        popularity - popularity.mean(),
        counts,
        anchors,
        first_bounds(config, *config.upload_reach, bits=codecs.BITS[config.uplink]),
    )


def gates_at(config: Config, number: jax.Array, gates: jax.Array) -> jax.Array:
    """Gates [channels] in round `number`, from the stored ones."""
    if len(gates) == 1 or config.curriculum in ("constant", "learned"):
        return gates
    time = jnp.clip(number / config.curriculum_rounds, 0, 1)
    if config.curriculum == "sigmoid":
        time = jax.nn.sigmoid(12 * (time - 0.5))
    rise = (1 - config.curriculum_floor) * time
    return gates * jnp.stack([1 - rise, config.curriculum_floor + rise])


def code_gates(config: Config, number: jax.Array, gates: jax.Array) -> jax.Array:
    """Gates [P] of the levels of all channels in round `number`."""
    return jnp.repeat(gates_at(config, number, gates), config.levels)


def broadcast(config: Config, shared: Shared) -> Broadcast:
    """What clients get: codebooks through the downlink's codec, and the users' curvature."""
    gates = code_gates(config, shared.round, shared.gates)
    sent = codecs.round_trip(gates[:, None, None] * shared.codebooks, config.downlink)
    context = codecs.round_trip(shared.context, config.downlink)
    met = shared.anchors
    items = catalogue.describe(
        sent, shared.codes.table[met], shared.text[met], shared.popularity[met]
    )
    curvature = fold_in.curvature(items.features, jnp.full(len(met), 1 / len(met)))
    return Broadcast(sent, context, curvature)


def all_items(shared: Shared, sent: Broadcast) -> Catalogue:
    """The whole catalogue under the codebooks as they were sent."""
    codes = shared.codes.table
    return catalogue.describe(sent.codebooks, codes, shared.text, shared.popularity)


def aggregate(
    config: Config,
    shared: Shared,
    uploads: tuple[Any, ...],
    weights: tuple[jax.Array, ...],
    key: jax.Array,
) -> Shared:
    """Adam's step on codebooks, gates and context by the mean change, and back towards the start.

    The way back is weight decay towards the start (L2-SP: Li et al., 2018): warm codebooks begin
    near the end, and rounds on users' own rows would lead ever further from it. A context starts at
    zero, and goes back there.
    """
    both = mean_change(config, shared, uploads, weights)
    change, of_context = jnp.split(both, [config.codebook_levels])
    gates = gates_at(config, shared.round, shared.gates)
    # d/dw and d/dC of a loss that depends on w C alone, from its gradient in w C.
    wanted = (change * shared.codebooks).reshape(len(gates), -1).sum(axis=1)
    wanted = wanted if config.curriculum == "learned" else jnp.zeros_like(wanted)
    gradient = change * jnp.repeat(gates, config.levels)[:, None, None], wanted, of_context
    parameters = shared.codebooks, shared.gates, shared.context
    (step, gates_step, context_step), moments = optimizer(config).update(
        gradient, shared.moments, parameters
    )
    codebooks = shared.codebooks + step_sizes(config, shared)[..., None] * step
    if config.start == "warm":
        start = ungated(shared.start, code_gates(config, shared.round, shared.gates))
        codebooks += config.start_decay * (start - codebooks)
    ratio = config.context_learning_rate / config.server_learning_rate
    context = shared.context + ratio * context_step
    return shared._replace(
        round=shared.round + 1,
        codebooks=codebooks,
        context=(1 - config.context_decay) * context,
        gates=shared.gates + gates_step,
        moments=moments,
    )


def step_sizes(config: Config, shared: Shared) -> jax.Array:
    """How large a step each code takes, [P, K], in steps of Adam: larger where it is rare."""
    if not config.rare_code_steps:
        return jnp.ones(config.codebook_shape[:2])
    rows = lambda codes: jax.ops.segment_sum(shared.counts, codes, config.codes)
    share = jax.vmap(rows, in_axes=1)(shared.codes.table) * config.codes
    share /= jnp.maximum(shared.counts.sum(), 1)  # no item may have the support it needs
    return jnp.minimum(jnp.maximum(share, 1e-9) ** -config.rare_code_steps, MOST_STEPS)


def mean_change(
    config: Config, shared: Shared, uploads: tuple[Any, ...], weights: tuple[jax.Array, ...]
) -> jax.Array:
    """The clients' mean gradient of what was broadcast, [P, K, D] or with context [2 P, K, D].

    A sign that no fitted user sends shows in the first half; norms are those of both.
    """
    exact = config.uplink in ("float32", "int8") and config.codebook_steps == 1
    if config.rule != "mean" and exact and not config.negatives:
        fitted = [upload[:, : config.codebook_levels] for upload in uploads]
        weights = descending(tuple(fitted), weights, broadcast(config, shared).codebooks)
    mean = combine(config.rule, uploads, weights, config.malicious)
    if mean.ndim == 3:
        return mean
    by_code = lambda codes: jax.ops.segment_sum(mean, codes, config.codes)  # mean is [I, D]
    return jax.vmap(by_code, in_axes=1)(shared.codes.table)


def refresh(config: Config, shared: Shared, data: Data, key: jax.Array) -> Shared:
    """New collaborative codes, and the codebooks expressed in them; Adam starts anew."""
    gates = code_gates(config, shared.round, shared.gates)
    codes, codebooks = refreshed_codes(
        config, shared.codes, shared.codebooks, gates, data, shared.counts, key
    )
    context = shared.context
    if config.next_rows:
        weights = jnp.sqrt(shared.counts)
        context = quantize.reexpress(
            context, shared.codes.table, codes.table, config.codes, weights=weights
        )
    moments = optimizer(config).init((codebooks, shared.gates, context))
    start = gates[:, None, None] * codebooks
    return shared._replace(
        codes=codes, codebooks=codebooks, start=start, context=context, moments=moments
    )
