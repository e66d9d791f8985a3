"""RQFedRec: clients and server exchange codebooks instead of item tables (arXiv 2601.18570).

An item is a list of codes [P], P = channels x levels, made by residual k-means on the vectors of
its text (semantic channel) and on collaborative vectors (collaborative channel). With codebooks C
[P, K, D], channel gates w, private user vectors u and a private popularity weight a,

    score(u, i) = u . sum_p w_p C[p, code(i, p)] + a log popularity(i).

A client fits u to its own history (`ops/fold_in.py`), takes gradient steps on the codebooks and
uploads the change; traffic depends on P, K and D, never on the number of items.

The abstracts are all of the paper that we could read, so the rest is ours:
- Set-up by secure sums (`federated/cooccurrence.py`): item counts, then a few passes of subspace
  iteration. The codebooks start at the least squares fit of those vectors, and so near the end.
- The loss is a softmax over the full catalogue (or a sample of it): every item that is not in
  train is a rival, so held-out items cannot leak through the negatives.
- Gates act at the server, on what it broadcasts: their gradient follows from the codebooks'. The
  curriculum moves weight from the semantic to the collaborative channel; with a warm start it
  gains nothing (README), so the gates are constant by default.
- `recency`: a client may weigh its newest rows most. It knows their order, nobody else does.
- A refresh passes the learned item table once more over the co-occurrences, codes the result
  anew and re-expresses the codebooks in the new codes by least squares.
"""

from __future__ import annotations

import math
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
from jaxrec.models.collaborative import Tables
from jaxrec.ops import fold_in, linalg, quantize
from jaxrec.ops.fold_in import Curvature
from jaxrec.types import Clients, Data, Method, SettingError, Sizes, Traffic

RUN = {"rounds": 200, "evaluate_every": 10, "patience": 4}
ANCHORS = 4096  # items that the curvature is taken on, whatever the catalogue
SCORES = 2**25  # scores [users, I] made at once when all users are fitted


@dataclass(frozen=True)
class Config:
    """Settings of RQFedRec."""

    channels: Literal["dual", "semantic", "collaborative", "random"] = "dual"
    """Where codes come from: item text, collaborative vectors, both, or (as a control) chance."""
    levels: int = 3
    """Q, quantiser levels of a channel."""
    codes: int = 256
    """K, codes a level."""
    width: int = 32
    """D, the width of codes and user vectors (numbers per vector)."""
    start: Literal["warm", "cold"] = "warm"
    """warm: codebooks fitted to the collaborative vectors; cold: random codebooks."""
    window: float = 0.0
    """Rows of a user that count as near in the collaborative vectors, in rows; 0: all of them."""
    passes: int = 4
    """Secure sums [I, D + 1] for the collaborative vectors."""
    sketch_participation: float = 0.2
    """Chance of a client to be in one of those sums, 0 to 1."""
    sketch_bits: Literal[8, 32] = 8
    """Bits of a number in those sums."""
    text_width: int = 64
    """Principal components of the text vectors that are quantised."""
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
    """Longest code row that a client may upload, in norm per interaction; 0: any."""
    trim: float = 0.0
    """Fraction of uploads dropped at either end of each coordinate before the mean."""
    drop_loss: float = 0.0
    """Fraction of its interactions, those of the highest loss, that a client leaves out."""
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
    codes: jax.Array  # int32 [I, P]
    codebooks: jax.Array  # f32 [P, K, D]
    gates: jax.Array  # f32 [channels]
    moments: Any  # the server optimiser's, of codebooks and gates
    popularity: jax.Array  # f32 [I]  centred log counts
    counts: jax.Array  # f32 [I]  train interactions
    anchors: jax.Array  # int32 [A]  items drawn by popularity
    diagnostics: quantize.Diagnostics  # of each channel's codes, [channels] or [channels, Q]


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
    channels = 2 if config.channels == "dual" else 1
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
        _check_data(config, data)
        key_vectors, key_codes, key_cold, key_anchors = jax.random.split(key, 4)
        counts = cooccurrence.item_counts(data, sizes.items)
        popularity = jnp.log1p(counts) * config.popularity
        vectors = sketch(data, counts, key_vectors) if _reads_vectors(config) else None
        codes, diagnostics = _code(config, data.text, vectors, counts, key_codes)
        if config.start == "warm":
            codebooks = quantize.refine(vectors, codes, config.codes, weights=jnp.sqrt(counts))
        else:
            codebooks = 0.1 * jax.random.normal(key_cold, shape)
        gates = jnp.ones(channels)
        if channels == 2:
            gates = gates.at[0].set(config.semantic_weight)
        anchors = jax.random.categorical(
            key_anchors, jnp.log(counts + 1e-9), shape=(min(ANCHORS, sizes.items),)
        )
        shared = Shared(
            jnp.int32(0), codes, codebooks, gates, optimizer.init((codebooks, gates)),
            popularity - popularity.mean(), counts, anchors, diagnostics,
        )  # fmt: skip
        start = tuple(jnp.broadcast_to(prior, (*c.users.shape, len(prior))) for c in data.clients)
        width = shape if keeps_error else (0,)
        error = tuple(jnp.zeros((len(c.client), *width)) for c in data.clients)
        return State(shared, tuple(table.user for table in fitted(shared, start, data)), error)

    def sketch(data, counts, key, **more):
        return cooccurrence.item_vectors(
            data, counts, key, width=config.width, window=config.window,
            participation=config.sketch_participation, bits=config.sketch_bits,
            **({"passes": config.passes} | more),
        )  # fmt: skip

    def broadcast(shared: Shared, *, everything: bool) -> Broadcast:
        gates = jnp.repeat(gates_at(shared), config.levels)
        sent = codecs.round_trip(gates[:, None, None] * shared.codebooks, config.downlink)
        met = shared.anchors
        anchors = catalogue.describe(sent, shared.codes[met], shared.popularity[met]).features
        curvature = fold_in.curvature(anchors, jnp.full(len(met), 1 / len(met)))
        items = catalogue.describe(sent, shared.codes, shared.popularity) if everything else None
        return Broadcast(sent, items, curvature)

    def gates_at(shared: Shared) -> jax.Array:
        if channels == 1 or config.curriculum in ("constant", "learned"):
            return shared.gates
        time = jnp.clip(shared.round / config.curriculum_rounds, 0, 1)
        if config.curriculum == "sigmoid":
            time = jax.nn.sigmoid(12 * (time - 0.5))
        rise = (1 - config.curriculum_floor) * time
        return shared.gates * jnp.stack([1 - rise, config.curriculum_floor + rise])

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
        weights = _row_weights(clients, config)
        if config.negatives:
            view = catalogue.sampled(
                sent.codebooks, shared.codes, shared.popularity, clients, weights,
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
        if config.clip:
            change = clip_rows(change, config.clip)
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
        gates = gates_at(shared)
        if factored:
            total = jnp.maximum(sum(weight.sum() for weight in weights), 1e-30)
            table = sum(
                jnp.einsum("c,cui,cud->id", weight / total, *upload)
                for weight, upload in zip(weights, uploads, strict=True)
            )
            change = jax.vmap(
                lambda codes: jax.ops.segment_sum(table, codes, config.codes), in_axes=1
            )(shared.codes)
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
        )
        refreshed = jnp.float32(0)
        if config.refresh:
            due = (shared.round % config.refresh == 0) & (shared.round > state.shared.round)
            renew = lambda shared: refresh(shared, data, key_refresh)
            shared = jax.lax.cond(due, renew, lambda shared: shared, shared)
            members = sum(jnp.sum(clients.weight > 0) for clients in data.clients)
            refreshed = due * config.sketch_participation * members
        metrics = Metrics(loss, gates_at(shared), shared.diagnostics, participants, refreshed)
        return State(shared, *zip(*private, strict=True)), metrics

    def refresh(shared: Shared, data: Data, key: jax.Array) -> Shared:
        """One pass of the learned item table over the co-occurrences, and new codes from it."""
        key_pass, key_codes = jax.random.split(key)
        learned = quantize.decode(shared.codes, shared.codebooks)
        vectors = sketch(data, shared.counts, key_pass, passes=1, start=learned)
        quantizer = quantize.fit(vectors, key_codes, levels=config.levels, size=config.codes)
        codes = shared.codes.at[:, -config.levels :].set(quantizer.codes)
        codebooks = quantize.refine(learned, codes, config.codes, weights=jnp.sqrt(shared.counts))
        return shared._replace(
            codes=codes,
            codebooks=codebooks,
            moments=optimizer.init((codebooks, shared.gates)),
            diagnostics=jax.tree.map(
                lambda old, new: old.at[-1].set(new),
                shared.diagnostics,
                quantize.diagnostics(vectors, quantizer),
            ),
        )

    def fitted(shared: Shared, users, data: Data) -> list[Tables]:
        """Every client fits its users to the newest codebooks; some clients at a time."""
        sent = broadcast(shared, everything=True)

        def one(pair):
            user, clients = pair
            view = catalogue.whole(sent.items, clients, _row_weights(clients, config))
            return fit(user, view, sent, clients)[0]

        tables = []
        for user, clients in zip(users, data.clients, strict=True):
            some = max(1, SCORES // (user.shape[1] * sizes.items))
            user = jax.lax.map(one, (user, clients), batch_size=min(some, len(user)))
            tables.append(Tables(user, sent.items.features))
        return tables

    def prepare(state: State, data: Data) -> local.Served:
        return local.serve(data, fitted(state.shared, state.user, data), sizes.users)

    return Method(init, step, prepare, local.score, traffic=_traffic(config, sizes, shape))


def reads_text(config: Config) -> bool:
    """Whether the semantic channel is in use."""
    return config.channels in ("dual", "semantic")


def _reads_vectors(config: Config) -> bool:
    return config.channels in ("dual", "collaborative") or config.start == "warm"


def _code(config: Config, text, vectors, counts, key) -> tuple[jax.Array, quantize.Diagnostics]:
    """Codes [I, P] and each channel's diagnostics, [channels] or [channels, Q]."""
    key_semantic, key_collaborative = jax.random.split(key)
    fit = partial(quantize.fit, levels=config.levels, size=config.codes)
    channels = []
    if reads_text(config):
        given = jnp.any(text != 0, axis=1)
        vectors_of_text = _principal(text, given, config.text_width)
        quantizer = fit(vectors_of_text, key_semantic, weights=given.astype(jnp.float32))
        channels.append((vectors_of_text, quantizer))
    if config.channels in ("dual", "collaborative"):
        known = (counts > 0).astype(jnp.float32)
        channels.append((vectors, fit(vectors, key_collaborative, weights=known)))
    if config.channels == "random":
        noise = jax.random.normal(key, (len(counts), config.width))
        channels.append((noise, fit(noise, key_collaborative)))
    codes = jnp.concatenate([quantizer.codes for _, quantizer in channels], axis=1)
    each = [quantize.diagnostics(*channel) for channel in channels]
    return codes, jax.tree.map(lambda *values: jnp.stack(values), *each)


def _principal(text: jax.Array, given: jax.Array, width: int) -> jax.Array:
    """Centred text vectors [I, T] on their leading `width` axes; zero for items without text."""
    centred = jnp.where(given[:, None], text - text.sum(0) / jnp.maximum(given.sum(), 1), 0)
    _, axes = linalg.eigh(centred.T @ centred)
    return centred @ axes[:, ::-1][:, :width]


def _row_weights(clients: Clients, config: Config) -> jax.Array:
    """How much each train row counts, [N]."""
    if config.recency == 0:
        return clients.mask.astype(jnp.float32)
    return clients.mask / (1 + clients.age / config.recency)


def _without_doubtful(user: jax.Array, view: View, clients: Clients, config: Config) -> View:
    """The view without the rows of the highest loss: random ones are hard to explain."""
    scores = user @ view.items.features.T + view.offset  # [U, J]
    losses = jax.nn.logsumexp(scores, axis=1)[clients.user] - scores[clients.user, view.slot]
    most = jnp.nanquantile(jnp.where(clients.mask, losses, jnp.nan), 1 - config.drop_loss)
    weights = jnp.where(losses <= most, _row_weights(clients, config), 0)
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
    counts = 4.0 * sizes.items  # to the server as a secure sum, back as the popularity term
    basis = sizes.items * (width + 1) * config.sketch_bits / 8
    scales = 2.0 * sizes.items if config.sketch_bits == 8 else 0.0
    passes = config.passes * config.sketch_participation if _reads_vectors(config) else 0
    return Traffic(
        up=up,
        down=down,
        setup_up=counts + passes * basis,
        setup_down=counts + passes * (basis + scales),
        codes_down=sizes.items * levels * max(1, math.ceil(math.log2(codes))) / 8,
        refresh_up=basis if config.refresh else 0.0,
        refresh_down=basis + scales if config.refresh else 0.0,
    )


def _check(config: Config, sizes: Sizes) -> None:
    for name in ("levels", "width", "passes", "text_width", "user_steps", "codebook_steps"):
        if getattr(config, name) < 1:
            raise SettingError(f"{name} = {getattr(config, name)}: must be at least 1")
    if not 1 <= config.codes <= sizes.items:
        raise SettingError(
            f"codes = {config.codes}: more codes a level than the {sizes.items:,} items (or none) "
            f"quantise nothing; set codes to at most {sizes.items:,}, better an eighth of it"
        )
    for name in ("window", "recency", "l2", "clip"):
        if not getattr(config, name) >= 0:
            raise SettingError(f"{name} = {getattr(config, name)}: must not be negative")
    for name in ("codebook_learning_rate", "server_learning_rate", "semantic_weight"):
        if not getattr(config, name) > 0:
            raise SettingError(f"{name} = {getattr(config, name)}: must be positive")
    for name in ("damping", "sketch_participation", "curriculum_floor"):
        if not 0 < getattr(config, name) <= 1:
            raise SettingError(f"{name} = {getattr(config, name)}: must lie in (0, 1]")
    for name, most in (("trim", 0.5), ("drop_loss", 1.0)):
        if not 0 <= getattr(config, name) < most:
            raise SettingError(f"{name} = {getattr(config, name)}: must lie in [0, {most})")
    if not 0 <= config.negatives <= sizes.items:
        raise SettingError(
            f"negatives = {config.negatives}: must be 0 (all) or up to the {sizes.items:,} items"
        )
    if config.curriculum_rounds < 1 or config.refresh < 0:
        raise SettingError(
            f"curriculum_rounds = {config.curriculum_rounds}, refresh = {config.refresh}: must be "
            "at least 1 and at least 0"
        )
    if config.refresh and config.channels not in ("dual", "collaborative"):
        raise SettingError(
            f"refresh = {config.refresh}: channels = {config.channels!r} have no collaborative "
            "codes; set refresh = 0"
        )


def _check_data(config: Config, data: Data) -> None:
    if reads_text(config) and data.text is None:
        raise SettingError(
            f"channels = {config.channels!r}: the data carry no item text vectors, so the semantic "
            "channel is empty; give the items a title, or set channels = 'collaborative'"
        )
    for name in ("window", "recency"):
        if getattr(config, name) and any(clients.age is None for clients in data.clients):
            raise SettingError(
                f"{name} = {getattr(config, name)}: the data have no timestamps, so the order of a "
                f"user's rows is unknown; set {name} = 0"
            )
