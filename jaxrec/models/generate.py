"""Tokens from a decoder: those after a prompt, greedy or sampled, with cached keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.models.decoder import Cache, Decoder
from jaxrec.types import SettingError


class Generated(NamedTuple):
    tokens: jax.Array  # int32 [B, T]  from `length` on -1
    length: jax.Array  # int32 [B]  without the stop token; T: the row was cut


def generate(
    decoder: Decoder,
    tokens: jax.Array,
    mask: jax.Array | None = None,
    key: jax.Array | None = None,
    *,
    max_new: int,
    temperature: float = 0.0,
    stop: Sequence[int] | None = None,
    rows: jax.Array | None = None,
    context: Sequence[Cache] = (),
) -> Generated:
    """Up to `max_new` tokens after each row of `tokens` int [B, T]; `mask` says which are real.

    Vectors [B, T, D] may stand for tokens, as in the decoder. Temperature 0 takes the likeliest
    token, another samples. A row ends at the first token of `stop` (by default the decoder's own);
    a row without a real token is empty. `context` holds keys and values of what stands before every
    row. `rows` int [B] names the rows' streams of random numbers, so that a sample depends neither
    on the batch nor on the row's place in it.
    """
    tokens = jnp.asarray(tokens)
    mask = jnp.ones(tokens.shape[:2], bool) if mask is None else jnp.asarray(mask, bool)
    stop = decoder.config.stop if stop is None else stop
    rows = jnp.arange(len(tokens)) if rows is None else jnp.asarray(rows)
    if temperature > 0 and key is None:
        raise SettingError(f"temperature = {temperature} samples: pass a key, or temperature 0")
    if max_new < 1 or temperature < 0:
        raise SettingError(
            f"max_new = {max_new}, temperature = {temperature}: at least 1 token and 0 are needed"
        )
    length = tokens.shape[1] + sum(cache.mask.shape[1] for cache in context)
    if length + max_new > decoder.config.positions:
        raise SettingError(
            f"{length} tokens of prompt and max_new = {max_new} are more than the decoder's "
            f"{decoder.config.positions} positions: shorten either"
        )
    with jax.default_matmul_precision("highest"):  # GPUs round f32 to 10 bits unless told not to
        return _generate(
            decoder.graphdef,
            decoder.params,
            tokens,
            mask,
            jax.random.key(0) if key is None else key,
            rows,
            jnp.float32(temperature),
            jnp.array(stop, jnp.int32),
            tuple(context),
            max_new=max_new,
        )


@partial(jax.jit, static_argnums=0, static_argnames="max_new")
def _generate(
    graphdef, params, tokens, mask, key, rows, temperature, stop, context, *, max_new
) -> Generated:
    model, batch = nnx.merge(graphdef, params), len(tokens)
    keys = jax.vmap(partial(jax.random.fold_in, key))(rows)

    def choose(states, step):
        logits = model.logits(states)  # [B, V]

        def sample():
            draw = lambda key: jax.random.gumbel(jax.random.fold_in(key, step), logits.shape[1:])
            return jnp.argmax(logits / temperature + jax.vmap(draw)(keys), axis=-1)

        return jax.lax.cond(temperature > 0, sample, lambda: jnp.argmax(logits, axis=-1))

    def write(answer, token, done, step):
        done = done | jnp.isin(token, stop)
        return answer.at[:, step].set(jnp.where(done, -1, token)), done

    def advance(carry):
        step, token, done, answer, (keys, values) = carry
        fed = jnp.arange(keys.shape[2])[None] < step - 1
        states, new = model.extend(
            token[:, None], None, (*context, prompt, Cache(keys, values, fed))
        )
        keys = jax.lax.dynamic_update_slice_in_dim(keys, new.key, step - 1, axis=2)
        values = jax.lax.dynamic_update_slice_in_dim(values, new.value, step - 1, axis=2)
        token = choose(states[:, 0], step)
        answer, done = write(answer, token, done, step)
        return step + 1, token, done, answer, (keys, values)

    states, prompt = model.extend(tokens, mask, context)
    last = tokens.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    token = choose(states[jnp.arange(batch), last], 0)
    empty = jnp.full((batch, max_new), -1, jnp.int32)
    answer, done = write(empty, token, ~mask.any(1), 0)
    layers, _, _, heads, width = prompt.key.shape
    later = jnp.zeros((layers, batch, max(max_new - 1, 1), heads, width), prompt.key.dtype)
    going = lambda carry: (carry[0] < max_new) & ~carry[2].all()
    carry = jax.lax.while_loop(going, advance, (1, token, done, answer, (later, later)))
    answer = carry[3]
    return Generated(answer, (answer >= 0).sum(1))
