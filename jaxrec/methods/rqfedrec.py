"""RQFedRec: clients and server exchange codebooks instead of item tables (arXiv 2601.18570).

An item is a list of codes [P], P = channels x levels, made by residual k-means on the vectors of
its text (semantic channel) and on collaborative vectors (collaborative channel). With codebooks C
[P, K, D], channel gates w, private user vectors u and a private popularity weight a,

    score(u, i) = u . sum_p w_p C[p, code(i, p)] + a log popularity(i).

A client fits u to its own history (`ops/fold_in.py`), takes gradient steps on the codebooks and
uploads the change; a round's traffic depends on P, K and D, never on the number of items.

The abstracts are all of the paper that we could read, so the rest is ours:
- Set-up by secure sums (`federated/cooccurrence.py`): item counts, then a few passes of subspace
  iteration. The codebooks start at the least squares fit of those vectors, and so near the end.
- The loss is a softmax over the full catalogue (or a sample of it): every item that is not in
  train is a rival, so held-out items cannot leak through the negatives. In the sample, what other
  users of the same client have is nobody's rival there.
- Gates act at the server, on what it broadcasts: their gradient follows from the codebooks'. The
  curriculum moves weight from the semantic to the collaborative channel; with a warm start it
  gains nothing (README), so the gates are constant by default.
- `recency`: a client may weigh its newest rows most. It knows their order, nobody else does.
- A refresh passes the learned item table once more over the co-occurrences, codes the result
  anew and re-expresses the codebooks in the new codes by least squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.federated import catalogue, codecs, cooccurrence, local
from jaxrec.federated.aggregate import clip_rows, trimmed_mean
from jaxrec.federated.catalogue import Catalogue, View
from jaxrec.federated.codecs import Codec
from jaxrec.federated.engine import Cohort, federated_round, weighted_mean
from jaxrec.methods import fedmf, rqfedrec_codes
from jaxrec.methods.rqfedrec_codes import Codes, CodesConfig
from jaxrec.models.collaborative import Tables
from jaxrec.ops import fold_in, quantize
from jaxrec.ops.fold_in import Curvature
from jaxrec.types import Clients, Data, Method, SettingError, Sizes, Traffic

RUN = {
    "rounds": 200, "evaluate_every": 10, "patience": 4, "baselines": ("fedavg", "popularity"),
}  # fmt: skip
MOST_KEPT = 8e9  # bytes
ANCHORS = 4096  # items that the curvature is taken on, whatever the catalogue
reads_text = rqfedrec_codes.reads_text


@dataclass(frozen=True)
class Config(CodesConfig):
    """Settings of RQFedRec."""

    popularity: bool = True
    """Whether scores have the public popularity term."""
    recency: float = 0.0
    """A train row with n newer ones of its user counts 1 / (1 + n / recency); 0: all count 1."""
    l2: float = 1.0
    """L2 penalty that draws a user to the popularity ranking, in interactions."""
    user_steps: int = 4
    """Newton steps of a user vector per round; serving takes as many."""
    damping: float = 0.3
    """Part of a Newton step that is taken, 0 to 1."""
    codebook_steps: int = 1
    """Gradient steps on a client's codebooks per round; 1: FedSGD, more: FedAvg."""
    codebook_learning_rate: float = 0.1
    """Step size of those steps, where there are more than one."""
    server_learning_rate: float = 0.003
    """Step size of the server's Adam."""
    negatives: int = 0
    """Sampled rivals of a client per round; 0: the full catalogue."""
    uplink: Codec = "int8"
    """How clients send codebooks; sign carries what it rounded off to the next upload."""
    downlink: Literal["float32", "int8"] = "int8"
    """How the server sends codebooks."""
    curriculum: Literal["constant", "linear", "sigmoid", "learned"] = "constant"
    """How the channels' gates move; learned: by gradient."""
    curriculum_rounds: int = 50
    """Rounds that a linear or sigmoid curriculum takes."""
    curriculum_floor: float = 0.5
    """The lowest gate of a curriculum."""
    semantic_weight: float = 1.0
    """A constant or first gate of the semantic channel, the collaborative one's being 1."""
    refresh: int = 0
    """Rounds between two refreshes of the collaborative codes; 0: never."""
    clip: float = 0.0
    """Longest code row that the server takes from a client, in norm per interaction; 0: any."""
    trim: float = 0.0
    """Fraction of uploads dropped at either end of each coordinate before the mean."""
    drop_loss: float = 0.0
    """Fraction of its interactions, those of the highest loss, that a client leaves out; rounded
    down."""
    participation: float = 0.1
    """Chance of a client to be in a round, 0 to 1."""
    dropout: float = 0.0
    """Chance of a chosen client to fail before its upload arrives, 0 to 1."""
    block: int = 0
    """Clients computed at once, a bound on memory; 0 = a whole bucket."""
    noisy: float = 0.0
    """Share of clients that send noise instead of an upload, to test robustness, 0 to 1."""
    noise_scale: float = 10.0
    """Size of that noise, in sizes of the upload that it replaces."""


class Shared(NamedTuple):
    round: jax.Array  # int32 []
    codes: Codes
    codebooks: jax.Array  # f32 [P, K, D]
    gates: jax.Array  # f32 [channels]
    moments: Any  # the server optimiser's, of codebooks and gates
    popularity: jax.Array  # f32 [I]  centred log counts
    counts: jax.Array  # f32 [I]  train interactions
    anchors: jax.Array  # int32 [A]  items drawn by popularity


class State(NamedTuple):
    shared: Shared
    user: tuple[jax.Array, ...]  # a bucket: f32 [C, U, D + 1], the last is the popularity weight
    error: tuple[jax.Array, ...]  # a bucket: f32 [C, P, K, D], what sign rounded off; else [C, 0]


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction of the fitted users, before the round
    gates: jax.Array  # [channels]
    codes: quantize.Diagnostics
    participants: jax.Array  # clients whose upload arrived
    refreshed: jax.Array  # clients that took part in a refresh


class Broadcast(NamedTuple):
    """What a client downloads, and what follows from it for everybody."""

    codebooks: jax.Array  # f32 [P, K, D]  gated
    items: Catalogue | None  # all items; None where rivals are sampled
    curvature: Curvature


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    _check(config, sizes)
    channels = rqfedrec_codes.channels(config)
    shape = (channels * config.levels, config.codes, config.width)
    per_channel = (channels, config.levels * config.codes * config.width)
    optimizer = optax.adam(config.server_learning_rate)
    cohort = Cohort.checked(
        config.participation, config.dropout, config.block, config.noisy, config.noise_scale
    )
    prior = jnp.zeros(config.width + 1).at[-1].set(1.0)
    keeps_error = config.uplink == "sign"
    # A mean of plain gradients needs no client's own codebooks: users first, then one product.
    factored = (config.uplink == "float32" and config.codebook_steps == 1) and not (
        config.clip or config.trim or config.noisy or config.negatives
    )

    def init(key: jax.Array, data: Data) -> State:
        rqfedrec_codes.check_data(config, data)
        key_codes, key_anchors = jax.random.split(key)
        counts = cooccurrence.item_counts(data, sizes.items)
        codes, codebooks = rqfedrec_codes.first(config, data, counts, key_codes)
        popularity = jnp.log1p(counts) * config.popularity
        gates = jnp.ones(channels)
        if channels == 2:
            gates = gates.at[0].set(config.semantic_weight)
            first = jnp.repeat(gates_at(jnp.int32(0), gates), config.levels)
            codebooks = rqfedrec_codes.ungated(codebooks, first)
        number = min(ANCHORS, sizes.items)
        anchors = jax.random.choice(key_anchors, sizes.items, (number,), p=counts + 1e-9)
        shared = Shared(
            jnp.int32(0), codes, codebooks, gates, optimizer.init((codebooks, gates)),
            popularity - popularity.mean(), counts, anchors,
        )  # fmt: skip
        start = tuple(jnp.broadcast_to(prior, (*c.users.shape, len(prior))) for c in data.clients)
        width = shape if keeps_error else (0,)
        error = tuple(jnp.zeros((len(c.client), *width)) for c in data.clients)
        if not config.negatives:  # else the whole catalogue is to be met at evaluations alone
            start = tuple(table.user for table in fitted(shared, start, data))
        return State(shared, start, error)

    def broadcast(shared: Shared, *, everything: bool) -> Broadcast:
        gates = jnp.repeat(gates_at(shared.round, shared.gates), config.levels)
        sent = codecs.round_trip(gates[:, None, None] * shared.codebooks, config.downlink)
        met = shared.anchors
        anchors = catalogue.describe(sent, shared.codes.table[met], shared.popularity[met]).features
        curvature = fold_in.curvature(anchors, jnp.full(len(met), 1 / len(met)))
        whole = catalogue.describe(sent, shared.codes.table, shared.popularity)
        return Broadcast(sent, whole if everything else None, curvature)

    def gates_at(number: jax.Array, gates: jax.Array) -> jax.Array:
        if channels == 1 or config.curriculum in ("constant", "learned"):
            return gates
        time = jnp.clip(number / config.curriculum_rounds, 0, 1)
        if config.curriculum == "sigmoid":
            time = jax.nn.sigmoid(12 * (time - 0.5))
        rise = (1 - config.curriculum_floor) * time
        return gates * jnp.stack([1 - rise, config.curriculum_floor + rise])

    def fit(start: jax.Array, view: View, sent: Broadcast, clients: Clients):
        """The client's users [U, D + 1] on what it has been sent, and the rows that it believes."""
        follow = partial(
            fold_in.fold_in,
            prior=prior,
            curvature=sent.curvature,
            l2=config.l2,
            damping=config.damping,
            steps=config.user_steps,
        )
        user = follow(start, view.items.features, view.chosen, view.offset)
        if config.drop_loss:
            view = _without_doubtful(user, view, clients, config)
            user = follow(user, view.items.features, view.chosen, view.offset)
        return user, view

    def train(shared: Shared, sent: Broadcast, private, clients: Clients, key: jax.Array):
        """One client: fit the users, then step on the codebooks; uploads their change."""
        user, error = private
        weights = local.row_weights(clients, config.recency)
        if config.negatives:
            view = catalogue.sampled(
                sent.codebooks, shared.codes.table, shared.popularity, clients, weights,
                config.negatives, key,
            )  # fmt: skip
        else:
            view = catalogue.whole(sent.items, clients, weights)
        user, view = fit(user, view, sent, clients)
        scores = user @ view.items.features.T + view.offset
        number = jnp.maximum(clients.weight, 1)
        loss = fold_in.loss(scores, view.chosen).sum() / number
        residual = fold_in.residual(scores, view.chosen) / number
        if factored:
            return (residual, user[:, :-1]), (user, error), loss
        if config.codebook_steps == 1:
            change = _change(user, residual, view.items, config)
        else:
            change = descend(user, sent.codebooks, view, number)
        upload = codecs.round_trip(change + error if keeps_error else change, config.uplink)
        error = change + error - upload if keeps_error else error
        return upload, (user, error), loss

    def descend(user, codebooks, view: View, number) -> jax.Array:
        """The mean gradient of several steps on the client's own codebooks."""

        def step(own, _):
            table = jnp.einsum("ud,pkd->upk", user[:, :-1], own)
            scores = catalogue.look_up(table, view.items) + view.offset
            scores += user[:, -1:] * view.items.popularity
            gradient = _change(
                user, fold_in.residual(scores, view.chosen) / number, view.items, config
            )
            return own - config.codebook_learning_rate * gradient, None

        last, _ = jax.lax.scan(step, codebooks, length=config.codebook_steps)
        return (codebooks - last) / (config.codebook_learning_rate * config.codebook_steps)

    def aggregate(shared: Shared, uploads, weights, key) -> Shared:
        gates = gates_at(shared.round, shared.gates)
        if factored:
            table = fedmf.item_gradient(uploads, weights)
            change = jax.vmap(
                lambda codes: jax.ops.segment_sum(table, codes, config.codes), in_axes=1
            )(shared.codes.table)
        elif config.trim:
            change = trimmed_mean(uploads, weights, config.trim)
        else:
            change = weighted_mean(uploads, weights)
        # d/dw and d/dC of a loss that depends on w C alone, from its gradient in w C.
        wanted = jnp.sum((change * shared.codebooks).reshape(per_channel), axis=1)
        wanted = wanted if config.curriculum == "learned" else jnp.zeros_like(wanted)
        gradient = change * jnp.repeat(gates, config.levels)[:, None, None], wanted
        parameters = shared.codebooks, shared.gates
        updates, moments = optimizer.update(gradient, shared.moments, parameters)
        codebooks, new_gates = optax.apply_updates(parameters, updates)
        return shared._replace(
            round=shared.round + 1, codebooks=codebooks, gates=new_gates, moments=moments
        )

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        key, key_refresh = jax.random.split(key)
        sent = broadcast(state.shared, everything=not config.negatives)
        if not (config.negatives or factored):
            sent = sent._replace(items=catalogue.with_incidence(sent.items, config.codes))
        shared, private, loss, participants = federated_round(
            (lambda shared, *rest: train(shared, sent, *rest),) * len(data.clients),
            aggregate,
            state.shared,
            tuple(zip(state.user, state.error, strict=True)),
            data.clients,
            key,
            cohort=cohort,
            additive=not (factored or config.trim),
            receive=receive,
        )
        user, error = zip(*private, strict=True)
        refreshed = jnp.float32(0)
        if config.refresh:
            due = (shared.round % config.refresh == 0) & (shared.round > state.shared.round)
            renew = lambda shared: refresh(shared, data, key_refresh)
            shared = jax.lax.cond(due, renew, lambda shared: shared, shared)
            error = tuple(jnp.where(due, 0, each) for each in error)  # it was of the old codes
            members = sum(jnp.sum(clients.weight > 0) for clients in data.clients)
            refreshed = due * config.sketch_participation * members
        gates = gates_at(shared.round, shared.gates)
        metrics = Metrics(loss, gates, shared.codes.diagnostics, participants, refreshed)
        return State(shared, user, error), metrics

    def receive(uploads):
        return clip_rows(uploads, config.clip) if config.clip else uploads

    def refresh(shared: Shared, data: Data, key: jax.Array) -> Shared:
        gates = jnp.repeat(gates_at(shared.round, shared.gates), config.levels)
        codes, codebooks = rqfedrec_codes.renewed(
            config, shared.codes, shared.codebooks, gates, data, shared.counts, key
        )
        moments = optimizer.init((codebooks, shared.gates))
        return shared._replace(codes=codes, codebooks=codebooks, moments=moments)

    def fitted(shared: Shared, users, data: Data) -> tuple[Tables, ...]:
        """Every client fits its users to the newest codebooks."""
        sent = broadcast(shared, everything=True)

        def one(pair):
            user, clients = pair
            weights = local.row_weights(clients, config.recency)
            return fit(user, catalogue.whole(sent.items, clients, weights), sent, clients)[0]

        users = catalogue.each_client(one, users, data, sizes.items)
        return tuple(Tables(user, sent.items.features) for user in users)

    def prepare(state: State, data: Data) -> local.Served:
        return local.serve(data, fitted(state.shared, state.user, data), sizes.users)

    def fold_in_users(state: State, data: Data) -> local.Served:
        return fedmf.serve_new(lambda users: fitted(state.shared, users, data), prior, data)

    return Method(
        init, step, prepare, local.score, traffic=_traffic(config, sizes, shape),
        vectors=local.vectors, fold_in=fold_in_users,
    )  # fmt: skip


def _without_doubtful(user: jax.Array, view: View, clients: Clients, config: Config) -> View:
    """The view without the rows of the highest loss: random ones are hard to explain."""
    scores = user @ view.items.features.T + view.offset  # [U, J]
    losses = jax.nn.logsumexp(scores, axis=1)[clients.user] - scores[clients.user, view.slot]
    place = jnp.argsort(jnp.argsort(jnp.where(clients.mask, -losses, jnp.inf)))  # 0: the highest
    dropped = place < jnp.floor(config.drop_loss * clients.weight + 1e-4)  # .29 * 100 is 28.99999
    weights = jnp.where(dropped, 0, local.row_weights(clients, config.recency))
    return catalogue.choose(view, clients, weights)


def _change(user, residual, items: Catalogue, config: Config) -> jax.Array:
    """The loss's gradient in the codebooks [P, K, D], from that in the scores [U, J]."""
    return jnp.einsum("upk,ud->pkd", catalogue.by_code(residual, items, config.codes), user[:, :-1])


def _traffic(config: Config, sizes: Sizes, shape: tuple[int, int, int]) -> Traffic:
    """Codebooks each round; counts, passes and the code table at set-up. Gates stay at home."""
    levels, codes, width = shape
    up, down = (
        codecs.message_bytes(codec, levels * codes, width)
        for codec in (config.uplink, config.downlink)
    )
    once = rqfedrec_codes.traffic(config, sizes, refreshes=config.refresh > 0)
    if not config.negatives:  # every client fits its users to the first codebooks
        once = once._replace(setup_down=once.setup_down + down)
    return once._replace(up=up, down=down)


def _check(config: Config, sizes: Sizes) -> None:
    rqfedrec_codes.check(config, sizes)
    levels = rqfedrec_codes.channels(config) * config.levels
    for name in ("user_steps", "codebook_steps", "curriculum_rounds"):
        if getattr(config, name) < 1:
            raise SettingError(f"{name} = {getattr(config, name)}: must be at least 1")
    for name in ("recency", "clip", "refresh"):
        if not getattr(config, name) >= 0:
            raise SettingError(f"{name} = {getattr(config, name)}: must not be negative")
    for name in ("l2", "codebook_learning_rate", "server_learning_rate", "semantic_weight"):
        if not getattr(config, name) > 0:
            raise SettingError(f"{name} = {getattr(config, name)}: must be positive")
    for name in ("damping", "curriculum_floor"):
        if not 0 < getattr(config, name) <= 1:
            raise SettingError(f"{name} = {getattr(config, name)}: must lie in (0, 1]")
    for name, most in (("trim", 0.5), ("drop_loss", 1.0)):
        if not 0 <= getattr(config, name) < most:
            raise SettingError(f"{name} = {getattr(config, name)}: must lie in [0, {most})")
    if not 0 <= config.negatives <= sizes.items:
        raise SettingError(
            f"negatives = {config.negatives}: must be 0 (all) or up to the {sizes.items:,} items"
        )
    if config.channels != "dual" and (
        config.curriculum != "constant" or config.semantic_weight != 1
    ):
        raise SettingError(
            f"channels = {config.channels!r}: one channel has no curriculum; leave curriculum = "
            f"{config.curriculum!r} at 'constant' and semantic_weight = {config.semantic_weight} "
            "at 1"
        )
    kept = 4 * sizes.clients * levels * config.codes * config.width  # bytes
    if config.uplink == "sign" and kept > MOST_KEPT:
        raise SettingError(
            f"uplink = 'sign': what {sizes.clients:,} clients round off would take "
            f"{kept / 1e9:.1f} GB; use fewer codes or levels, or uplink = 'int4'"
        )
    if config.refresh and config.channels not in ("dual", "collaborative"):
        raise SettingError(
            f"refresh = {config.refresh}: channels = {config.channels!r} have no collaborative "
            "codes; set refresh = 0"
        )
