"""RQFedRec's set-up: which codes items get, and with which codebooks training begins.

    counts, vectors (secure sums) -> codes of each channel -> codebooks that fit the vectors

Items without text share the code list nearest to the mean text, items without train rows that of a
zero vector; the other channel tells them apart. A code that no item uses has a zero code vector in
a warm start and is never trained.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.federated import codecs, cooccurrence, secure_sum
from jaxrec.federated.divided import number_of_users
from jaxrec.federated.private_mean import in_integers
from jaxrec.methods.rqfedrec.config import CodesConfig, Config
from jaxrec.ops import linalg, quantize
from jaxrec.types import Data, SettingError, Sizes, Traffic


class Codes(NamedTuple):
    """How items are coded."""

    table: jax.Array  # int32 [I, P]
    diagnostics: quantize.Diagnostics  # of each channel's codes, [channels] or [channels, Q]


def initial_codes(
    config: CodesConfig,
    data: Data,
    counts: jax.Array,
    key: jax.Array,
    vectors: jax.Array | None = None,
) -> tuple[Codes, jax.Array]:
    """The first codes, and codebooks [P, K, D] to start from; `counts` [I] are public.

    Collaborative `vectors` [I, D] are made by secure sums where none are given.
    """
    key_vectors, key_codes, key_cold = jax.random.split(key, 3)
    if vectors is None and config.needs_vectors:
        vectors = _vectors(config, data, counts, key_vectors)
    codes = _coded(config, data.text, vectors, counts, key_codes)
    if config.start == "warm":
        return codes, _fitted(config, vectors, codes.table, counts)
    shape = codes.table.shape[1], config.codes, config.width
    return codes, 0.1 * jax.random.normal(key_cold, shape)


def grown_codes(
    config: CodesConfig, data: Data, counts: jax.Array, key: jax.Array, learned: jax.Array
) -> tuple[Codes, jax.Array]:
    """Codes of all items, and codebooks [P, K, D] that keep the vectors `learned` of the first.

    One secure sum passes them over the co-occurrences, which tells where new items belong.
    """
    key_pass, key_codes = jax.random.split(key)
    known = len(learned)
    table = jnp.zeros((len(counts), config.width)).at[:known].set(learned)
    vectors = None
    if config.needs_vectors:
        vectors = _vectors(config, data, counts, key_pass, start=table)
    codes = _coded(config, data.text, vectors, counts, key_codes)
    return codes, keeping(config, learned, codes.table, counts)


def keeping(
    config: CodesConfig, learned: jax.Array, table: jax.Array, counts: jax.Array
) -> jax.Array:
    """Codebooks [P, K, D] in the codes `table` [I, P] that keep vectors `learned` of the first."""
    first = len(learned)
    vectors = jnp.zeros((len(table), config.width)).at[:first].set(learned)
    weights = jnp.sqrt(counts).at[first:].set(0)
    return quantize.refine(vectors, table, config.codes, weights=weights)


def refreshed_codes(
    config: CodesConfig,
    codes: Codes,
    codebooks: jax.Array,
    gates: jax.Array,
    data: Data,
    counts: jax.Array,
    key: jax.Array,
) -> tuple[Codes, jax.Array]:
    """New collaborative codes, and the codebooks [P, K, D] re-expressed in them.

    What is kept is the table as served, with each codebook times its gate [P].

    One more secure sum passes the learned item table [I, D] over the co-occurrences: codes alone
    cannot tell apart the items that share a list, so what is new must come from there.
    """
    key_pass, key_codes = jax.random.split(key)
    gated = gates[:, None, None] * codebooks
    learned = quantize.decode(codes.table, gated)
    vectors = _vectors(config, data, counts, key_pass, start=learned)
    quantizer = _quantizer(config, vectors, counts > 0, key_codes)
    table = codes.table.at[:, -config.levels :].set(quantizer.codes)
    diagnostics = jax.tree.map(
        lambda old, new: old.at[-1].set(new),
        codes.diagnostics,
        quantize.diagnostics(vectors, quantizer),
    )
    anew = quantize.reexpress(gated, codes.table, table, config.codes, weights=jnp.sqrt(counts))
    return Codes(table, diagnostics), ungated(anew, gates)


def ungated(codebooks: jax.Array, gates: jax.Array) -> jax.Array:
    """The codebooks [P, K, D] that times their gates [P] are `codebooks`; a closed gate is left."""
    gates = jnp.where(jnp.abs(gates) < 0.05, 1.0, gates)
    return codebooks / gates[:, None, None]


def _vectors(config: CodesConfig, data: Data, counts, key, start=None) -> jax.Array:
    users = number_of_users(sum(clients.users.size for clients in data.clients))
    largest = secure_sum.headroom(users) if in_integers(config) else None
    return cooccurrence.item_vectors(
        data,
        counts,
        key,
        width=config.width,
        window=config.window,
        shrinkage=config.shrinkage,
        passes=config.passes if start is None else 1,
        participation=config.sketch_participation,
        bits=config.sketch_bits,
        start=start,
        largest=largest,
    )


def _fitted(config: CodesConfig, vectors, table, counts) -> jax.Array:
    # A popular item's vector is better known, and more depends on it.
    return quantize.refine(vectors, table, config.codes, weights=jnp.sqrt(counts))


def _quantizer(config: CodesConfig, vectors, known, key) -> quantize.Quantizer:
    weights = known.astype(jnp.float32)
    return quantize.fit(vectors, key, levels=config.levels, size=config.codes, weights=weights)


def _coded(config: CodesConfig, text, vectors, counts, key) -> Codes:
    key_semantic, key_collaborative = jax.random.split(key)
    coded = []
    if config.semantic:
        given = jnp.any(text != 0, axis=1)
        described = _principal(text, given, config.text_width)
        coded.append((described, _quantizer(config, described, given, key_semantic)))
    if config.collaborative:
        coded.append((vectors, _quantizer(config, vectors, counts > 0, key_collaborative)))
    if config.channels == "random":
        noise = jax.random.normal(key, (len(counts), config.width))
        coded.append((noise, _quantizer(config, noise, counts >= 0, key_collaborative)))
    table = jnp.concatenate([quantizer.codes for _, quantizer in coded], axis=1)
    each = [quantize.diagnostics(*pair) for pair in coded]
    return Codes(table, jax.tree.map(lambda *values: jnp.stack(values), *each))


def text_vectors(config: CodesConfig, text: jax.Array | None, items: int) -> jax.Array:
    """The items' texts as scores read them, f32 [I, T], as they come down in 4 bits; zero without.

    The texts are public, and what a user makes of them stays with the client: nothing is sent.
    """
    if text is None or not config.text_numbers:
        return jnp.zeros((items, 0))
    found = _principal(text, jnp.any(text != 0, axis=1), config.text_numbers)
    found = jnp.pad(found, ((0, 0), (0, config.text_numbers - found.shape[1])))
    length = jnp.linalg.norm(found, axis=1, keepdims=True)
    apart = jnp.where(length > 1e-4, found / jnp.maximum(length, 1e-4), 0)  # from the mean text
    return codecs.round_trip(config.text_scale * apart, "int4")


def _principal(text: jax.Array, given: jax.Array, width: int) -> jax.Array:
    """Centred text vectors [I, T] on their leading `width` axes; zero for items without text."""
    centred = jnp.where(given[:, None], text - text.sum(0) / jnp.maximum(given.sum(), 1), 0)
    _, axes = linalg.eigh(centred.T @ centred)
    return centred @ axes[:, ::-1][:, :width]


def traffic(config: CodesConfig, sizes: Sizes, *, weighed: bool, refreshes: bool) -> Traffic:
    """Bytes of the set-up, of a code table and of a refresh; nothing per round.

    Where rows are `weighed`, there is a second sum of counts.
    """
    narrow = config.sketch_bits == 8
    counts = 4.0 * sizes.items  # to the server as a secure sum, back as the popularity term
    recent = counts if weighed else 0.0
    text = text_bytes(config, sizes)
    numbers = sizes.items * (config.width + 1)
    basis = numbers * config.sketch_bits / 8
    # Masked integers travel modulo the largest possible sum: a row of 8 bits from each user.
    addends = max(1, math.ceil(config.sketch_participation * sizes.users))
    summed = numbers * (math.ceil(math.log2(2 * 127 * addends + 1)) if narrow else 32) / 8
    scales = 2.0 * sizes.items if narrow else 0.0
    passes = config.passes * config.sketch_participation if config.needs_vectors else 0
    bits = config.codebook_levels * max(1, math.ceil(math.log2(config.codes)))  # of an item's codes
    return Traffic(
        setup_up=counts + recent + passes * summed,
        setup_down=counts + recent + text + passes * (basis + scales),
        codes_down=sizes.items * bits / 8,
        refresh_up=summed if refreshes else 0.0,
        refresh_down=basis + scales if refreshes else 0.0,
    )


def settled(config: Config, data: Data, forward: bool) -> tuple[Config, str]:
    """The settings as the data allow them, and what to say of what is missing."""
    notes = []
    if config.channels == "auto" and data.text is not None:
        config = replace(config, channels="dual")
    elif config.channels == "auto":
        config = replace(config, channels="collaborative")
        notes.append("the items have no texts, so their codes are collaborative alone")
    if config.next_rows and config.trains:
        config = replace(config, next_rows=0)
        notes.append(f"model = {config.model} has no context, so next_rows is 0")
    if config.next_rows and all(clients.age is None for clients in data.clients):
        config = replace(config, next_rows=0)
        notes.append("the rows have no order, so next_rows is 0 and no context is learned")
    if config.next_rows and config.noised:
        config = replace(config, next_rows=0)
        notes.append("noise would cover a context, so next_rows is 0 and none is learned")
    return config, "; ".join(notes)


def text_bytes(config: CodesConfig, sizes: Sizes) -> float:
    """Bytes of `text_vectors`, which come down once."""
    numbers = config.text_numbers
    return codecs.message_bytes("int4", sizes.items, numbers) if numbers else 0.0


def check_data(config: Config, data: Data) -> None:
    """Refuse data that lack what the settings need; raises SettingError naming it."""
    if config.semantic and data.text is None:
        raise SettingError(
            f"channels = {config.channels!r}: the data carry no item text vectors, so the semantic "
            "channel is empty; give the items a title, or set channels = 'collaborative', as "
            "jaxrec.train does where channels = 'auto'"
        )
    if config.next_rows and config.trains:
        raise SettingError(
            f"next_rows = {config.next_rows}: model = {config.model!r} has no context; set "
            "next_rows = 0, as jaxrec.train does"
        )
    if config.next_rows and all(clients.age is None for clients in data.clients):
        raise SettingError(
            f"next_rows = {config.next_rows}: the data have no timestamps, so nobody knows which "
            "rows are the newest; set next_rows = 0, as jaxrec.train does"
        )
