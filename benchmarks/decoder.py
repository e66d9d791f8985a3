"""LoRA steps of a decoder with and without a shared prompt, and generation. Weights are random.

    python -m benchmarks decoder [--quick]

The decoder has the sizes of Qwen1.5-0.5B (24 layers, D = 1,024) in bfloat16, on a CPU and with
`--quick` 6 layers of D = 384 in float32. A
step is E4SRec's: a prompt of 48 tokens, 50 vectors of items and 4 tokens for each of 16 users,
cross-entropy of the last state over 12,101 items, gradients to rank-16 pairs beside gate, up and
down alone, Adam. "joined" puts the prompt in every row, "shared" computes its keys and values once.

Work counted: products, and for generation the bytes of the weights, read once a token. A frozen
kernel of n numbers takes 2 n flop a token forward and 2 n back, a pair 6 n, attention 12 T S H d.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.common import Bench, Work, timed
from jaxrec.models import decoder, lora
from jaxrec.models.generate import generate

PROMPT, OWN, ITEMS, RANK, ALPHA = 48, 54, 12_101, 16, 16.0
LARGE = decoder.Config(
    vocabulary=151_936,
    width=1024,
    layers=24,
    heads=16,
    kv_heads=16,
    head_width=64,
    inner=2816,
    positions=32_768,
    theta=1e6,
    tied=True,
    input_bias=True,
)
SMALL = replace(LARGE, vocabulary=16_384, width=384, layers=6, heads=6, kv_heads=6, inner=1056)


def kernels(config):
    """Numbers in all kernels, and in rank-1 pairs beside gate, up and down."""
    width, inner = config.width, config.inner
    attention = 2 * width * config.head_width * (config.heads + config.kv_heads)
    return config.layers * (attention + 3 * width * inner), config.layers * 3 * (width + inner)


def step_flop(config, batch, shared):
    """Of one step: forward, and back to the pairs."""
    base, pairs = kernels(config)
    rows = ((1, PROMPT, PROMPT), (batch, OWN, PROMPT + OWN))
    if not shared:
        rows = ((batch, PROMPT + OWN, PROMPT + OWN),)
    heads = config.layers * config.heads * config.head_width
    trunk = sum(b * t * (4 * base + 6 * RANK * pairs + 12 * s * heads) for b, t, s in rows)
    return trunk + 4.0 * batch * config.width * ITEMS


def steps(config, model, batch, bench):
    """Time a step in both forms, and say how far their losses and new pairs differ."""
    rng = np.random.default_rng(0)
    prompt = jnp.asarray(rng.integers(0, config.vocabulary, (1, PROMPT)))
    own = jnp.asarray(rng.normal(size=(batch, OWN, config.width)) * 0.02, jnp.float32)
    table = jnp.asarray(rng.normal(size=(config.width, ITEMS)) * 0.02, jnp.float32)
    target = jnp.asarray(rng.integers(0, ITEMS, batch))
    pairs = lora.init(model.params, ("gate", "up", "down"), RANK, jax.random.key(0))
    optimizer = optax.adam(3e-4)

    def step(shared, params, pairs, state, prompt, own, table, target):
        def loss(pairs):
            llama = nnx.merge(model.graphdef, lora.apply(params, pairs, ALPHA))
            if shared:
                states = llama(own, None, (llama.extend(prompt)[1],))
            else:
                first = llama.embed(prompt).astype(own.dtype)
                first = jnp.broadcast_to(first, (batch, *first.shape[1:]))
                states = llama(jnp.concatenate([first, own], axis=1))
            logits = states[:, -1].astype(jnp.float32) @ table
            return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()

        value, gradients = jax.value_and_grad(loss)(pairs)
        updates, state = optimizer.update(gradients, state, pairs)
        return value, optax.apply_updates(pairs, updates), state, gradients

    args = (model.params, pairs, optimizer.init(pairs), prompt, own, table, target)
    results = {}
    for name, shared in (("joined", False), ("shared", True)):
        form = lambda *args, shared=shared: step(shared, *args)
        results[name], timing = timed(form, *args)
        flop = step_flop(config, batch, shared)
        work = Work(flop=flop, dtype=model.params["embedding"].dtype.name)
        bench.report(f"LoRA step, {name}, {batch} users", timing, work)
        print(f"    {flop / timing.median / 1e12:,.3f} TFLOP/s; loss {results[name][0]:.6f}")
    joined, shared = (jax.tree.leaves(results[name][3]) for name in ("joined", "shared"))
    largest = max(float(jnp.abs(a).max()) for a in joined)
    difference = max(float(jnp.abs(a - b).max()) for a, b in zip(joined, shared, strict=True))
    print(f"    gradients of both differ by {difference:.1e}; the largest is {largest:.1e}")


def generation(config, model, bench, new=32, length=64):
    """Time greedy answers of `new` tokens to prompts of `length`, for a few batches."""
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    numbers = kernels(config)[0] + config.vocabulary * config.width
    for batch in (1, 16):
        tokens = jax.random.randint(jax.random.key(0), (batch, length), 0, config.vocabulary)
        answer = lambda tokens=tokens: generate(model, tokens, max_new=new, stop=())
        _, timing = timed(answer, host=True)
        prefill = 2.0 * batch * length * kernels(config)[0]
        flop = prefill + 2.0 * batch * new * numbers
        work = Work(flop, float(weights * new), model.params["embedding"].dtype.name)
        bench.report(f"generate, {batch} x {new} tokens after {length}", timing, work)
        print(f"    {batch * new / timing.median:,.0f} tokens/s")


def main(bench: Bench, quick: bool) -> None:
    small = quick or jax.default_backend() == "cpu"
    config, dtype, batches = (SMALL, "float32", (16,)) if small else (LARGE, "bfloat16", (16, 128))
    model = decoder.random(config, jax.random.key(0), dtype)
    count = sum(leaf.size for leaf in jax.tree.leaves(model.params)) / 1e6
    print(f"\n{config.layers} layers, D = {config.width}, {count:,.0f} M random {dtype} weights")
    for batch in batches:
        steps(config, model, batch, bench)
    generation(config, model, bench)
