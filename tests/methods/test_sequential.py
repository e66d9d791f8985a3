"""Sequential recommenders: the epoch's loss against loops, order that must be learnt, odd data."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from jaxrec.data.pack import history, pack
from jaxrec.data.partition import partition
from jaxrec.data.rows import lay
from jaxrec.data.split import split
from jaxrec.methods import popularity, sequential
from jaxrec.models.sequential import last
from jaxrec.run import train
from jaxrec.types import TEST, DataError, Dataset

QUICK = {"xla_backend_optimization_level": 0}
USERS, ITEMS = 40, 24
SMALL = {"width": 8, "layers": 1, "heads": 2, "length": 8, "batch": 64}


def chain(users=USERS, items=ITEMS, seed=0):
    """Item i is followed by 5 i + 3, one time in ten by any item; all items are equally popular."""
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
    dataset = partition(split(chain(), "leave-one-out"), "blocks", clients=4)
    return dataset, *pack(dataset)


def made(**settings):
    config = sequential.Config(**SMALL | settings)
    return config, sequential.make(config, problem()[2])


def started(method, data=None):
    return jax.jit(method.init, compiler_options=QUICK)(jax.random.key(0), data or problem()[1])


def stepped(method, state, data, key=1):
    step = jax.jit(method.step, compiler_options=QUICK)
    return step(state, data, jax.random.key(key))


def served(method, state, data):
    return jax.jit(method.prepare, compiler_options=QUICK)(state, data)


def own_items(data, user):
    return np.asarray(data.history.item[data.history.start[user] : data.history.start[user + 1]])


def padded(sequences, length):
    rows = [[ITEMS] * (length - len(s)) + list(s) for s in (s[-length:] for s in sequences)]
    return jnp.array(rows, jnp.int32)


@cache
def prefixes(length):
    """Each place alone: the items before it, newest `length` pairs of a user, and what came."""
    pairs = []
    for user in range(USERS):
        items = own_items(problem()[1], user)
        begin = max(0, len(items) - 1 - length)
        pairs += [(items[begin : t + 1], items[t + 1]) for t in range(begin, len(items) - 1)]
    return padded([p for p, _ in pairs], length), np.array([y for _, y in pairs])


@pytest.mark.parametrize("model", ["sasrec", "gru4rec"])
def test_an_epoch_of_one_batch_has_the_loss_of_a_loop_over_prefixes(model):
    """Rows that sequences share, all places in one pass, scores chunk by chunk: one number."""
    config, method = made(model=model, dropout=0.0, batch=800)
    state = started(method)
    after, metrics = stepped(method, state, problem()[1])
    before, target = prefixes(config.length)
    module = nnx.merge(
        nnx.graphdef(sequential.build(jax.random.key(0), config, ITEMS)), state.params
    )
    scores = last(module(before)) @ module.table[...].T
    share = jax.nn.log_softmax(scores)[np.arange(len(target)), target]
    assert metrics.loss == pytest.approx(float(-share.mean()), rel=1e-5)
    # Adam's first step moves every weight with a gradient by the learning rate.
    moved = np.abs(after.params["table"][...] - state.params["table"][...])
    np.testing.assert_allclose(moved.max(), config.learning_rate, rtol=1e-2)


def test_the_gradient_of_shared_rows_is_that_of_one_row_a_user():
    config, _ = made(dropout=0.0)
    data = problem()[1]
    graphdef, params = nnx.split(sequential.build(jax.random.key(0), config, ITEMS))

    def total(params, item, target, position):
        module = nnx.merge(graphdef, params)
        hidden = module(item, position).reshape(-1, config.width)
        share = jax.nn.log_softmax(hidden @ module.table[...].T)
        gain = jnp.take_along_axis(share, jnp.minimum(target, ITEMS - 1).reshape(-1, 1), 1)[:, 0]
        return jnp.sum(gain, where=(item < ITEMS).ravel())

    order = jax.random.permutation(jax.random.key(3), USERS)
    rows, _ = lay(data.history, order, items=ITEMS, length=config.length, ahead=1)
    items = [own_items(data, user) for user in range(USERS)]
    item = padded([x[:-1] for x in items], config.length)
    target = padded([x[1:] for x in items], config.length)
    position = jnp.cumsum(item < ITEMS, axis=1) - 1
    gradient = jax.jit(jax.grad(total), compiler_options=QUICK)
    shared = gradient(params, rows.item, rows.target, rows.position)
    alone = gradient(params, item, target, position)
    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(
            found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
        ),
        shared,
        alone,
    )


def test_users_are_served_by_their_newest_items():
    config, method = made(model="sasrec", batch=16)
    state = started(method)
    module = sequential.build(jax.random.key(0), config, ITEMS)
    module = nnx.merge(nnx.graphdef(module), state.params)
    dataset, data, _ = problem()
    for past in (data, data._replace(history=history(dataset, TEST))):
        found = served(method, state, past)
        items = padded([own_items(past, user) for user in range(USERS)], config.length)
        np.testing.assert_allclose(found.user, last(module(items)), rtol=1e-4, atol=1e-5)
        scores = method.score(found, jnp.array([2, 7]))
        np.testing.assert_allclose(
            scores, found.user[np.array([2, 7])] @ found.item.T, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    "settings",
    [{}, {"model": "gru4rec"}, {"loss": "binary", "norm": "post"}],
    ids=["sasrec", "gru4rec", "binary"],
)
def test_an_order_is_learnt_that_counts_do_not_show(settings):
    """The chain's next item is right 9 times in 10; popularity can only guess."""
    dataset = chain(users=300, seed=1)
    common = {"split": "leave-one-out", "progress": False, "baselines": (), "ks": (1, 10)}
    result = train(
        "sequential", dataset, **common, **SMALL | {"width": 16} | settings, mask_history=False,
        rounds=45, evaluate_every=15, dropout=0.1, learning_rate=1e-2, patience=0,
        monitor="HR@1",
    )  # fmt: skip
    guess = train("popularity", dataset, **common, mask_history=False, monitor="HR@1")
    assert guess.values["test/HR@1"] < 0.15
    assert result.values["test/HR@1"] > 0.6


def test_a_user_with_one_item_teaches_nothing_and_is_served():
    rows = pd.DataFrame({"user": [0, 1, 2], "item": [3, 1, 3], "split": 0, "client": 0})
    rows["timestamp"] = 0
    tables = pd.DataFrame({"item": range(5)}), pd.DataFrame({"user": range(3)})
    data, sizes = pack(Dataset("ones", rows, *tables))
    method = sequential.make(sequential.Config(**SMALL), sizes)
    state = started(method, data)
    after, metrics = stepped(method, state, data)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    assert metrics.loss == 0
    found = served(method, state, data).user
    assert (found[0] != 0).any()
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5)
    assert (found[0] != found[1]).any()


def test_what_is_known_at_test_time_does_not_reach_the_state():
    dataset = problem()[0]
    rows = dataset.interactions
    later = rows["split"] > 0
    changed = rows.assign(item=rows["item"].where(~later, (rows["item"] + 7) % ITEMS))
    runs = [
        train("sequential", Dataset("chain", r, dataset.items, dataset.users), progress=False,
              split="given", rounds=2, patience=0, baselines=(), **SMALL)
        for r in (rows, changed)
    ]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, *(run.state for run in runs))
    assert runs[0].values["test/MRR"] != runs[1].values["test/MRR"]


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path):
    settings = {"progress": False, "patience": 0, "evaluate_every": 1, "warmup": 4, **SMALL}
    whole = train("sequential", chain(), rounds=4, out=tmp_path / "whole", **settings)
    train("sequential", chain(), rounds=2, out=tmp_path / "cut", **settings)
    cut = train(resume=tmp_path / "cut", data=chain(), rounds=4, progress=False)
    jax.tree.map(np.testing.assert_array_equal, cut.state, whole.state)
    assert [row["train/loss"] for row in cut.rows] == [row["train/loss"] for row in whole.rows]
    assert list(whole.baselines) == ["popularity"]
    assert popularity.Config() == whole.baselines["popularity"].config


def test_data_without_an_order_are_refused():
    data = problem()[1]._replace(history=None)
    with pytest.raises(DataError, match=r"'timestamp' or 'position'"):
        made()[1].init(jax.random.key(0), data)


def test_an_odd_number_of_heads_is_no_matter_to_a_recurrent_network():
    made(model="gru4rec", heads=3)
