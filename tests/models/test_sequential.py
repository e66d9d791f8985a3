"""SASRec and GRU4Rec against loops in NumPy: one place after another, one head after another."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.models import sequential
from jaxrec.models.sequential import GRU4Rec, SASRec

ITEMS, WIDTH, LENGTH = 11, 6, 7
PAD = ITEMS
SEQUENCES = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [], [3, 5, 8, 10], [0]]
MODULES = {
    "pre": lambda key: SASRec(key, **SIZE, heads=3, norm="pre"),
    "post": lambda key: SASRec(key, **SIZE, heads=2, norm="post"),
    "gru4rec": lambda key: GRU4Rec(key, items=ITEMS, width=WIDTH, layers=2, dropout=0.5),
}
SIZE = {"items": ITEMS, "width": WIDTH, "layers": 2, "length": LENGTH, "inner": 2, "dropout": 0.5}
every_module = pytest.mark.parametrize("name", MODULES)


@cache
def module(name):
    """With every weight perturbed: defaults such as scale 1 and bias 0 would hide errors."""
    graphdef, params = nnx.split(MODULES[name](jax.random.key(0)))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    moved = [leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return nnx.merge(graphdef, jax.tree.unflatten(tree, moved))


@cache
def applied(name):
    graphdef, params = nnx.split(module(name))
    apply = lambda params, *inputs, key=None: nnx.merge(graphdef, params)(*inputs, key=key)
    apply = jax.jit(apply)
    return lambda *inputs, key=None: apply(params, *inputs, key=key)


def left(sequences, length=LENGTH):
    return jnp.array([[PAD] * (length - len(s)) + list(s) for s in sequences], jnp.int32)


def double(param):
    return np.asarray(param[...], float)


def norm(x, weights):
    return (x - x.mean()) / math.sqrt(x.var() + sequential.EPSILON) * double(
        weights.scale
    ) + double(weights.bias)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def slow_block(block, states, form):
    """One block; `states` is a list of vectors, the sequence alone."""
    before = [norm(x, block.norms[0]) if form == "pre" else x for x in states]
    mixed = [x @ double(block.mix) + double(block.mix_bias) for x in before]
    query, key, value = (
        [np.split(x, 3)[n].reshape(block.heads, -1) for x in mixed] for n in range(3)
    )
    after = []
    for t, x in enumerate(states):
        heads = []
        for h in range(block.heads):
            size = math.sqrt(query[t].shape[1])
            weight = np.exp([query[t][h] @ key[s][h] / size for s in range(t + 1)])
            heads.append(sum(w * value[s][h] for s, w in enumerate(weight / weight.sum())))
        x = x + np.concatenate(heads) @ double(block.out) + double(block.out_bias)
        x = x if form == "pre" else norm(x, block.norms[0])
        inner = norm(x, block.norms[1]) if form == "pre" else x
        inner = gelu(inner @ double(block.up) + double(block.up_bias))
        x = x + inner @ double(block.down) + double(block.down_bias)
        after.append(x if form == "pre" else norm(x, block.norms[1]))
    return after


def slow_sasrec(module, sequence):
    states = [
        double(module.table)[item] + double(module.position)[t] for t, item in enumerate(sequence)
    ]
    if module.form == "post":
        states = [norm(x, module.norm) for x in states]
    for block in module.blocks:
        states = slow_block(block, states, module.form)
    return [norm(x, module.norm) if module.form == "pre" else x for x in states]


def slow_gru4rec(module, sequence):
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    states = [double(module.table)[item] for item in sequence]
    for layer in range(len(module.read)):
        read, read_bias, keep, keep_bias = (
            double(weights[layer])
            for weights in (module.read, module.read_bias, module.keep, module.keep_bias)
        )
        memory = np.zeros(WIDTH)
        for t, x in enumerate(states):
            new_r, new_z, new_n = np.split(x @ read + read_bias, 3)
            old_r, old_z, old_n = np.split(memory @ keep + keep_bias, 3)
            reset, update = sigmoid(new_r + old_r), sigmoid(new_z + old_z)
            memory = (1 - update) * np.tanh(new_n + reset * old_n) + update * memory
            states[t] = memory
    return [x @ double(module.out) + double(module.out_bias) for x in states]


@every_module
def test_it_equals_the_loops(name):
    slow = slow_gru4rec if name == "gru4rec" else slow_sasrec
    found = np.asarray(applied(name)(left(SEQUENCES)))
    for row, sequence in zip(found, SEQUENCES, strict=True):
        expected = np.zeros((LENGTH, WIDTH))
        if sequence:
            expected[-len(sequence) :] = slow(module(name), sequence)
        np.testing.assert_allclose(row, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["pre", "gru4rec"])
def test_jit_equals_eager(name):
    with jax.disable_jit():
        expected = module(name)(left(SEQUENCES))
    found = applied(name)(left(SEQUENCES))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@every_module
def test_a_later_item_changes_nothing_before_it(name):
    changed = [[*SEQUENCES[0][:4], 7, *SEQUENCES[0][5:]], *SEQUENCES[1:]]
    found, other = (applied(name)(left(sequences))[0] for sequences in (SEQUENCES, changed))
    np.testing.assert_array_equal(found[:4], other[:4])
    assert (np.abs(found[4:] - other[4:]).max(1) > 1e-3).all()


@every_module
def test_a_prefix_has_the_same_vectors_alone(name):
    whole = applied(name)(left(SEQUENCES))[0]
    prefixes = applied(name)(left([SEQUENCES[0][: n + 1] for n in range(5)]))
    np.testing.assert_allclose(sequential.last(prefixes), whole[:5], rtol=1e-4, atol=1e-5)


@every_module
def test_padding_and_the_rest_of_the_batch_have_no_effect(name):
    many = applied(name)(left(SEQUENCES))
    for row, sequence in zip(many, SEQUENCES, strict=True):
        n = len(sequence)
        behind = applied(name)(jnp.array(5 * [[*sequence, *[PAD] * (LENGTH - n)]]))[0]
        np.testing.assert_allclose(row[LENGTH - n :], behind[:n], rtol=1e-4, atol=1e-5)
        assert not row[: LENGTH - n].any() and not behind[n:].any()
    one = applied(name)(left(SEQUENCES[3:4], 4))[0]
    np.testing.assert_allclose(one, many[3, -4:], rtol=1e-4, atol=1e-5)


@every_module
def test_sequences_in_one_row_do_not_see_each_other(name):
    first, second = SEQUENCES[3], SEQUENCES[1]
    row = jnp.array([[*first, *second, PAD]])
    position = jnp.array([[0, 1, 2, 3, 0, 1, 0]])
    together = applied(name)(row, position)[0]
    alone = applied(name)(left(SEQUENCES))
    np.testing.assert_allclose(together[:4], alone[3, -4:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together[4:6], alone[1, -2:], rtol=1e-4, atol=1e-5)
    assert not together[6:].any()


def test_dropout_keeps_the_mean():
    ones = jnp.ones((200, 300))
    dropped = sequential.dropout(ones, 0.25, jax.random.key(0), 0)
    assert sorted(np.unique(dropped).tolist()) == pytest.approx([0, 4 / 3])
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    assert sequential.dropout(ones, 0.25, None, 0) is ones


@every_module
def test_dropout_follows_the_key(name):
    keys = jax.random.split(jax.random.key(1))
    one, other, again = (applied(name)(left(SEQUENCES), key=k) for k in (*keys, keys[0]))
    assert (one != other).any()
    np.testing.assert_array_equal(one, again)
    assert not one[2].any()


@pytest.mark.parametrize("name", ["pre", "gru4rec"])
def test_gradients_are_finite_where_a_row_is_empty(name):
    graphdef, params = nnx.split(module(name))
    loss = lambda params: jnp.sum(nnx.merge(graphdef, params)(left([[], [2]])) ** 2)
    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert jnp.isfinite(leaf).all()
