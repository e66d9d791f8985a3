"""RQFedRec: clients and server exchange codebooks instead of item tables (arXiv 2601.18570).

An item is a list of codes [P], P = channels x levels, made by residual k-means on the vectors of
its text (semantic channel) and on collaborative vectors (collaborative channel). With codebooks C
[P, K, D], channel gates w, text vectors t, private user vectors u and s and a private popularity
weight a,

    score(u, i) = (u + h) . sum_p w_p C[p, code(i, p)] + s . t_i + a log popularity(i).

A client fits u, s and a to its own history (`ops/fold_in.py`), reads the user's context h off a
second set of codebooks (`context.py`), and uploads the gradient in both; a round's traffic depends
on P, K and D, never on the number of items.

The abstracts are all of the paper that we could read, so the rest is ours:
- Set-up by secure sums (`federated/cooccurrence.py`): item counts, then a few passes of subspace
  iteration. The codebooks start at the least squares fit of those vectors, and so near the end.
- The loss is a softmax over the full catalogue (or a sample of it): every item that is not in
  train is a rival, so held-out items cannot leak through the negatives. In the sample, what other
  users of the same client have is nobody's rival there.
- Gates act at the server, on what it broadcasts: their gradient follows from the codebooks'. The
  curriculum moves weight from the semantic to the collaborative channel; with a warm start it
  gains nothing (docs/rqfedrec.md), so the gates are constant by default.
- `recency`: a client may weigh its newest rows most. It knows their order, nobody else does. Where
  it does, popularity is the sum of those weights, what users chose last; under a budget it is not,
  as its sum is over all rows.
- What users chose last says what comes next: context codebooks start at zero, and rounds learn
  them from the users' newest rows.
- Items that hardly anybody has yet are found by their texts: s . t_i costs no upload.
- Codebooks go back towards their start a part of the way each round, and codes that few rows use
  take larger steps: without either, validation falls again soon after its best round.
- A refresh passes the learned item table once more over the co-occurrences, codes the result
  anew and re-expresses the codebooks in the new codes by least squares.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.federated import catalogue, codecs, cohort, scoring
from jaxrec.federated.catalogue import Catalogue
from jaxrec.federated.cooccurrence import recent_counts
from jaxrec.federated.divided import is_divided
from jaxrec.federated.engine import federated_round
from jaxrec.federated.malicious import RENAMED, with_attackers
from jaxrec.federated.privacy import check_user_sums
from jaxrec.federated.sum_bytes import masked_bytes, with_protocol
from jaxrec.federated.support import supported, supported_counts
from jaxrec.federated.uploads import Factored
from jaxrec.methods.rqfedrec import client, codes, context, module_client, private_setup, server
from jaxrec.methods.rqfedrec.config import Config, check_items
from jaxrec.methods.rqfedrec.state import Metrics, Shared, State
from jaxrec.models.collaborative import Tables
from jaxrec.ops import quantize
from jaxrec.types import (
    Attendance,
    Data,
    Earlier,
    Method,
    Reads,
    Release,
    SettingError,
    Sizes,
    Traffic,
    Traits,
)

SKETCHED, SKETCHING = 1200, 20  # users and clients that a sum of the set-up needs

TRAITS = Traits(
    run={
        "rounds": 200,
        "evaluate_every": 10,
        "patience": 4,
        "baselines": ("fedavg", "als", "itemknn", "popularity"),
    },
    reads=lambda config: Reads(
        text=config.semantic and config.channels != "auto", any_text=config.channels == "auto"
    ),
    settled=codes.settled,
    uses=("order", "text"),
    renamed={"dropout": "dropped", "trim": "malicious"} | RENAMED,
    unread=lambda config: config.unread,
    smaller=({"uplink": "int4"}, {"next_rows": 0}),
)


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    check_items(config, sizes)
    config = with_sketch(cohort.with_enough(config, sizes), sizes)
    cohort.check_rounds(config, sizes)
    check_user_sums(config, sizes)
    method = Method(
        partial(init, config, sizes),
        partial(step, config),
        partial(prepare, config, sizes),
        scoring.score,
        traffic=traffic(config, sizes),
        attendance=lambda metrics: Attendance(metrics.participants, metrics.refreshed),
        releases=partial(releases, config) if config.noised else None,
        vectors=scoring.vectors,
        fold_in=partial(fold_in_users, config),
        grow=partial(grow, config, sizes),
    )
    if config.trains:
        score = partial(module_client.score, module_client.model_of(config))
        method = method._replace(score=score, vectors=scoring.NO_VECTORS)
        method = method._replace(grow=scoring.GROWS_NOT, fold_in=scoring.FOLDS_NOT)
    return with_attackers(config, sizes, method)


def with_sketch(config: Config, sizes: Sizes) -> Config:
    """The settings, with a chance for the set-up's sums where none is set."""
    least = max(0.2, SKETCHED / max(sizes.users, 1), SKETCHING / max(sizes.clients, 1))
    chance = config.sketch_participation or min(1.0, least)
    return replace(config, sketch_participation=chance)


def traffic(config: Config, sizes: Sizes) -> Traffic:
    """Codebooks and context each round; counts, passes and the code table at set-up. Gates stay
    at home, and the first context is zero, so nobody sends it."""
    first, rows = (math.prod(shape[:2]) for shape in (config.codebook_shape, config.upload_shape))
    width = config.width
    down = codecs.message_bytes(config.downlink, rows, width)
    addends = math.ceil(config.participation * sizes.clients)
    if config.privacy == "plain" or config.uplink == "float32":
        up = codecs.message_bytes(config.uplink, rows, width)
    elif config.privacy == "secure_sum":  # a row's scale comes down, how it fits goes up
        up = masked_bytes(rows * (width + 2), addends, codecs.BITS[config.uplink])
        down += 4.0 * rows
    else:
        up = 4.0 * rows * width
    weighed, refreshes = config.recency > 0, config.refresh > 0
    once = codes.traffic(config, sizes, weighed=weighed, refreshes=refreshes)
    if config.noised:
        setup_up, setup_down = private_setup.traffic(config, sizes)
        setup_down += codes.text_bytes(config, sizes)
        once = once._replace(setup_up=setup_up, setup_down=setup_down)
    if not config.negatives:  # every client fits its users to the first codebooks
        start = codecs.message_bytes(config.downlink, first, width)
        once = once._replace(setup_down=once.setup_down + start)
    setup = 2 if config.noised else 1 + weighed + config.passes * config.needs_vectors
    every = once._replace(up=up, down=down)
    return with_protocol(config, every, sizes.clients, cohort=config.participation, setup=setup)


def releases(config: Config, rounds: int) -> tuple[Release, ...]:
    """What a run of so many rounds spends a budget on."""
    return (*private_setup.releases(config), *cohort.releases(config, rounds))


def init(
    config: Config, sizes: Sizes, key: jax.Array, data: Data, learned: jax.Array | None = None
) -> State:
    """The set-up: counts, codes and codebooks by secure sums; users fitted to them.

    Codebooks keep the vectors f32 [I, D] that were `learned` of the first items.
    """
    codes.check_data(config, data)
    key_codes, key_anchors = jax.random.split(key)
    vectors = None
    if config.noised:
        key_codes, key_sums = jax.random.split(key_codes)
        counts, vectors = private_setup.counts_and_vectors(config, sizes, data, key_sums)
        recent = counts
    else:
        counts = supported_counts(config, data, sizes.items)
        data = known(config, counts, data)
        recent = recent_counts(data, counts, config.recency)
    if learned is None:
        coded, codebooks = codes.initial_codes(config, data, counts, key_codes, vectors)
    else:
        coded, codebooks = codes.grown_codes(config, data, counts, key_codes, learned)
    text = codes.text_vectors(config, data.text, sizes.items)
    shared = server.initial_shared(config, coded, codebooks, counts, recent, text, key_anchors)
    users = scoring.new_users(client.prior(config), data)
    if config.trains:
        model = module_client.model_of(config)
        users = module_client.init(config, model, jax.random.fold_in(key, 2), data)
    width = config.upload_shape if config.keeps_error else (0,)
    error = tuple(jnp.zeros((len(c.client), *width)) for c in data.clients)
    if not (config.negatives or config.trains):  # else it is met whole at evaluations alone
        users = fitted(config, shared, users, data)
    return State(shared, users, error)


def grow(
    config: Config, sizes: Sizes, state: State, was: Earlier, key: jax.Array, data: Data
) -> State:
    """New codes for all items, with codebooks that keep what was learned; the curriculum begins
    again, and so does the optimiser."""
    shared = state.shared
    gates = server.code_gates(config, shared.round, shared.gates)
    learned = quantize.decode(shared.codes.table, gates[:, None, None] * shared.codebooks)
    grown = init(config, sizes, key, data, learned)
    if not config.next_rows:
        return grown
    said = quantize.decode(shared.codes.table, shared.context)
    kept = codes.keeping(config, said, grown.shared.codes.table, grown.shared.counts)
    return grown._replace(shared=grown.shared._replace(context=kept))


def step(config: Config, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """One round, and a refresh of the codes where one is due."""
    key, key_refresh = jax.random.split(key)
    data = known(config, state.shared.counts, data)
    sent = server.broadcast(config, state.shared)
    items = server.all_items(state.shared, sent)
    described = items if config.factored else catalogue.with_incidence(items, config.codes)
    described = None if config.negatives else described
    train = partial(client.train, config, sent, described)
    if config.trains:
        train = partial(module_client.train, config, module_client.model_of(config), sent, items)
    done = federated_round(
        (train,) * len(data.clients),
        partial(server.aggregate, config),
        state.shared,
        tuple(zip(state.user, state.error, strict=True)),
        data.clients,
        key,
        cohort=config,
        bounds=state.shared.bounds,
        additive=config.rule == "mean",
        bits=codecs.BITS[config.uplink],
        product=partial(sent_gradient, config, items),
    )
    shared = done.shared._replace(bounds=done.bounds)
    user, error = zip(*done.private, strict=True)
    refreshed = jnp.float32(0)
    if config.refresh:
        if is_divided():
            raise SettingError(
                f"refresh = {config.refresh}: clients on machines of their own take part in no "
                "refresh of the codes yet; set refresh = 0"
            )
        due = (shared.round % config.refresh == 0) & (shared.round > state.shared.round)
        renew = lambda shared: server.refresh(config, shared, data, key_refresh)
        shared = jax.lax.cond(due, renew, lambda shared: shared, shared)
        error = tuple(jnp.where(due, 0, each) for each in error)  # it was of the old codes
        members = sum(jnp.sum(clients.weight > 0) for clients in data.clients)
        refreshed = due * config.sketch_participation * members
    gates = server.gates_at(config, shared.round, shared.gates)
    metrics = Metrics(
        done.metrics,
        gates,
        shared.codes.diagnostics,
        done.participants,
        done.non_finite,
        refreshed,
    )
    return State(shared, user, error), metrics


def known(config: Config, counts: jax.Array, data: Data) -> Data:
    """The data as the method may use them: without items that too few users have."""
    return data if config.support == 1 else supported(data, counts > 0)


def sent_gradient(config: Config, items: Catalogue, upload: Factored) -> jax.Array:
    """What a client sends in place of its factors: the codebooks' gradient [P, K, D]."""
    items = catalogue.with_incidence(items, config.codes)
    return client.codebook_gradient(config, *upload, items)


def fitted(
    config: Config, shared: Shared, users: tuple[jax.Array, ...], data: Data
) -> tuple[jax.Array, ...]:
    """Every client's users [C, U, D + T + 1], fitted to the newest codebooks."""
    data = known(config, shared.counts, data)
    sent = server.broadcast(config, shared)
    items = server.all_items(shared, sent)

    def one(pair: Any) -> jax.Array:
        user, clients = pair
        return client.fit(config, user, client.view(config, items, clients), sent, clients)[0]

    return catalogue.each_client(one, users, data, len(shared.counts))


def served(
    config: Config, shared: Shared, users: tuple[jax.Array, ...], data: Data
) -> tuple[Tables, ...]:
    """Every client's users, fitted and with what they chose last, and the items."""
    users = fitted(config, shared, users, data)
    sent = server.broadcast(config, shared)
    if config.next_rows:
        said = quantize.decode(shared.codes.table, sent.context)

        def add(pair: Any) -> jax.Array:
            user, clients = pair
            return user.at[:, : config.width].add(context.of_users(config, said, clients))

        data = known(config, shared.counts, data)
        users = catalogue.each_client(add, users, data, len(said))
    items = server.all_items(shared, sent)
    return tuple(Tables(user, items.features) for user in users)


def prepare(config: Config, sizes: Sizes, state: State, data: Data) -> Any:
    """Every user of the federation, fitted and laid out for scoring."""
    if config.trains:
        data = known(config, state.shared.counts, data)
        sent = server.broadcast(config, state.shared)
        return module_client.prepare(state.shared, sent, state.user, data, sizes.users)
    return scoring.serve(data, served(config, state.shared, state.user, data), sizes.users)


def fold_in_users(config: Config, state: State, data: Data) -> scoring.Served:
    """New users, fitted and laid out for scoring."""
    refit = lambda users: fitted(config, state.shared, users, data)
    finish = lambda users: served(config, state.shared, users, data)
    return scoring.fit_new_users(refit, finish, client.prior(config), data)
