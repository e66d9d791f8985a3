"""Flax modules as clients' models: those that stand as plain arrays too are equal to them."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.federated import local, scoring
from jaxrec.methods import fedavg, fedcia, local_only, rqfedrec
from jaxrec.models import kinds, modules
from jaxrec.models.clients import factorisation
from jaxrec.models.collaborative import Tables
from jaxrec.types import SettingError

WIDTH, ITEMS = 4, 30


class Bilinear(nnx.Module):
    """The module of docs/extending.md: users pass a matrix that they share."""

    def __init__(self, key, users, width):
        self.user = modules.Private(0.1 * jax.random.normal(key, (users, width)))
        self.mix = nnx.Param(jnp.eye(width))

    def __call__(self, item, rows):
        return self.user[...] @ self.mix[...], item


class Distance(modules.MF):
    """Scores that are no inner product."""

    def score(self, user, item):
        return -jnp.sum((user[:, None] - item) ** 2, axis=-1)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(kinds.CLIENT_MODELS, "bilinear", Bilinear)
    monkeypatch.setitem(kinds.CLIENT_MODELS, "distance", Distance)


@cache
def problem():
    dataset = split(synthetic(users=24, items=ITEMS, clients=6, length=14), "ratio", 0.1, 0.2, 0)
    data, sizes = pack(dataset)
    text = jax.random.normal(jax.random.key(5), (ITEMS, 3))
    return data._replace(text=text), sizes


FREE = {"privacy": "plain", "min_support": 1, "min_cohort": 1}
METHODS = {
    "local_only": lambda **given: (local_only, {"width": WIDTH} | given),
    "fedavg": lambda **given: (fedavg, FREE | {"width": WIDTH, "upload": "change"} | given),
    "fedcia": lambda **given: (fedcia, FREE | {"width": WIDTH, "training": "steps"} | given),
    "rqfedrec": lambda **given: (
        rqfedrec,
        FREE | {"width": WIDTH, "codes": 6, "levels": 2, "text_width": 3, "participation": 1.0}
        | {"next_rows": 0, "channels": "semantic", "start": "cold"} | given,
    ),
}  # fmt: skip


@cache
def built(method, **settings):
    """A method whose parts are compiled once, whatever the number of tests that run them."""
    module, given = METHODS[method](**settings)
    made = module.make(module.Config(**given), problem()[1])
    parts = {name: jax.jit(getattr(made, name)) for name in ("init", "step", "prepare", "score")}
    return made._replace(**parts)


@cache
def trained(method, rounds=2, **settings):
    made, data, metrics = built(method, **settings), problem()[0], None
    state = made.init(jax.random.key(0), data)
    for number in range(rounds):
        state, metrics = made.step(state, data, jax.random.key(number))
    scores = made.score(made.prepare(state, data), np.arange(24))
    return made, state, np.asarray(scores), metrics


def plain_and_module(layers):
    plain = factorisation(WIDTH, 0.1, layers)
    module = modules.LightGCN if layers else modules.MF
    return plain, modules.of_module("twin", module, WIDTH, 0.1)


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("loss", ["square", "softmax", "bpr"])
def test_a_module_trains_to_the_numbers_of_its_plain_twin(layers, loss):
    config = local.LocalConfig(width=WIDTH, loss=loss, local_steps=3)
    client = jax.tree.map(lambda leaf: leaf[0], problem()[0].clients[0])

    def train(model, client, key):
        user, network = model.init_users(key, len(client.users))
        tables = Tables(user, model.init_items(key, ITEMS, 0), network)
        optimizer = local.optimizer(config, model._replace(plain=True))
        done = local.train(
            tables, optimizer.init(tables), client, key, optimizer=optimizer, config=config,
            items=ITEMS, model=model,
        )  # fmt: skip
        return jax.tree.leaves(done[0]), done[2]

    train = jax.jit(train, static_argnums=0)
    found = [train(model, client, jax.random.key(3)) for model in plain_and_module(layers)]
    for one, two in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["local_only", "fedavg", "fedcia"])
def test_methods_serve_a_module_as_they_serve_its_plain_twin(method, monkeypatch):
    monkeypatch.setitem(kinds.CLIENT_MODELS, "twin", modules.MF)
    plain, module = (trained(method, model=name)[2] for name in ("mf", "twin"))
    np.testing.assert_allclose(module, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("fedavg", "mlp"),
        ("fedcia", "bilinear"),
        ("rqfedrec", "distance"),
        pytest.param("local_only", "distance", marks=pytest.mark.slow),
        pytest.param("fedavg", "distance", marks=pytest.mark.slow),
        pytest.param("fedcia", "mlp", marks=pytest.mark.slow),
        pytest.param("rqfedrec", "mlp", marks=pytest.mark.slow),
    ],
)
def test_any_module_is_a_client_of_every_federated_method(method, model):
    _, _, scores, metrics = trained(method, model=model)
    _, _, before, _ = trained(method, rounds=0, model=model)
    assert scores.shape == (24, ITEMS) and np.isfinite(scores).all()
    assert np.abs(scores - before).max() > 1e-4
    assert np.isfinite(metrics.loss)


@pytest.mark.parametrize("method", ["fedavg", "fedcia"])
def test_an_item_encoder_is_trained_in_place_of_a_table(method):
    _, state, scores, _ = trained(method, item_encoder="text")
    assert np.isfinite(scores).all()
    widths = {leaf.shape[-2:] for leaf in jax.tree.leaves(state) if leaf.ndim > 1}
    assert (3, 2 * WIDTH) in widths and (ITEMS, WIDTH) not in {
        leaf.shape[-2:]
        for leaf in jax.tree.leaves(getattr(state, "tables", getattr(state, "user", ())))
    }


def test_fedavg_shares_what_is_not_private():
    _, state, _, _ = trained("fedavg", model="bilinear")
    item, network = state.shared.item
    assert item.shape == (ITEMS, WIDTH)
    assert [leaf.shape for leaf in jax.tree.leaves(network)] == [(WIDTH, WIDTH)]
    assert np.abs(jax.tree.leaves(network)[0] - np.eye(WIDTH)).max() > 1e-4
    users = [leaf.shape[-1] for leaf in jax.tree.leaves(state.user)]
    assert set(users) == {WIDTH}


def test_fedavg_counts_the_bytes_of_all_that_is_shared():
    traffic = trained("fedavg", rounds=1, model="bilinear")[0].traffic
    assert traffic.up == traffic.down == 4 * (ITEMS * WIDTH + WIDTH**2)


def test_an_item_encoder_moves_towards_the_server_similarity():
    _, state, _, _ = trained("fedcia", rounds=1, item_encoder="text")
    model = kinds.client_model("mf", WIDTH, scale=0.1, encoder="text")
    data, shared = problem()[0], state.shared
    config = fedcia.Config(width=WIDTH, item_encoder="text", training="steps")
    item = jax.tree.map(lambda leaf: leaf[0], state.tables[0].item)
    from jaxrec.methods.fedcia.client import aligned
    from jaxrec.methods.fedcia.similarity import distance

    before = distance(model.items(item, data.text), shared.similarity)
    moved = aligned(config, model, item, data.text, shared)
    assert distance(model.items(moved, data.text), shared.similarity) < before


def test_a_mixed_federation_serves_each_user_by_its_own_client():
    made, state, scores, _ = trained("fedcia", model="mf:4,mlp:3,distance:4")
    data = problem()[0]
    served = made.prepare(state, data)
    assert isinstance(served, scoring.ServedModels)
    distance = kinds.client_model("distance", 4, scale=0.1)
    parts = served.encoded[2]  # of the third kind
    assert parts
    place = np.asarray(served.place)[np.asarray(served.slot)]
    first = len(served.encoded[0]) + len(served.encoded[1])
    scores_of = jax.jit(distance.scores, static_argnums=1)
    for user in np.flatnonzero(place[:, 0] >= first):
        bucket, client, row = place[user]
        encoded = jax.tree.map(lambda leaf, c=client: np.asarray(leaf)[c], parts[bucket - first])
        whole = scores_of(encoded, len(encoded.user))
        np.testing.assert_allclose(scores[user], whole[row], rtol=1e-4, atol=1e-5)
        expected = -np.sum((encoded.user[row] - encoded.item) ** 2, axis=1)
        np.testing.assert_allclose(scores[user], expected, rtol=1e-3, atol=1e-4)


def test_a_module_of_rqfedrec_sends_the_gradient_through_its_scores():
    """By finite differences of the loss along a direction."""
    from jaxrec.methods.rqfedrec import module_client, server

    settings = {"model": "distance", "uplink": "float32", "downlink": "float32"}
    config, data = rqfedrec.Config(**METHODS["rqfedrec"](**settings)[1]), problem()[0]
    state = built("rqfedrec", **settings).init(jax.random.key(0), data)
    sent = jax.jit(server.broadcast, static_argnums=0)(config, state.shared)
    items = jax.jit(server.all_items)(state.shared, sent)
    model = module_client.model_of(config)
    first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
    client, private = first(data.clients[0]), first((state.user[0], state.error[0]))
    play = jax.jit(
        lambda sent, private: module_client.train(
            config, model, sent, items, state.shared, private, client, None
        )
    )
    upload, (carry, _), _ = play(sent, private)
    direction = jax.random.normal(jax.random.key(1), sent.codebooks.shape)

    def loss(step):  # the first loss of a round that begins where this one ended
        moved = sent._replace(codebooks=sent.codebooks + step * direction)
        return play(moved, (carry, private[1]))[2]

    slope = (loss(0.01) - loss(-0.01)) / 0.02
    assert slope == pytest.approx(float(jnp.vdot(upload, direction)), rel=2e-2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "mpl"}, "no model 'mpl'.*'mlp'"),
        ({"model": "mf,mpl"}, "no client model 'mpl'.*jaxrec.CLIENT_MODELS.*'mlp'"),
        ({"item_encoder": "txt"}, "no item encoder 'txt'.*'text'"),
        ({"model": "mlp", "loss": "elementwise"}, "loss = 'elementwise'.*no inner product"),
        ({"model": "eas"}, "no model 'eas' among .*'ease'"),
        ({"item_encoder": "text", "align": "gradient"}, "align = 'gradient'.*'procrustes'"),
        ({"model": "mlp:0"}, "'0' is no width"),
        ({"model": "mf,ease"}, "ease has nothing to train"),
    ],
)
def test_what_cannot_be_a_client_is_refused_by_name(settings, words):
    with pytest.raises(SettingError, match=words):
        fedcia.make(fedcia.Config(**{"training": "auto"} | settings), problem()[1])


def without_private(self, key, users, width):
    self.user = nnx.Param(jax.random.normal(key, (users, width)))


def with_a_second_table(self, key, users, width):
    self.user = modules.Private(jax.random.normal(key, (users, width)))
    self.other = nnx.Param(jax.random.normal(key, (users, width)))


def with_dropout(self, key, users, width):
    self.user = modules.Private(jax.random.normal(key, (users, width)))
    self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))


def with_one_user(self, key, users, width):
    self.user = modules.Private(jax.random.normal(key, (1, width)))


@pytest.mark.parametrize(
    ("init", "words"),
    [
        (without_private, "has no Private variable"),
        (with_a_second_table, "not Private grows with the users"),
        (with_dropout, "no float, such as a random key"),
        (with_one_user, "returns .1, 4. and .5, 4., not vectors of the users"),
    ],
)
def test_a_module_that_breaks_a_rule_is_refused_by_it(monkeypatch, init, words):
    made = type("Wrong", (modules.MF,), {"__init__": init})
    monkeypatch.setitem(kinds.CLIENT_MODELS, "wrong", made)
    with pytest.raises(SettingError, match=f"model = 'wrong': .*{words}"):
        kinds.client_model("wrong", 4, scale=0.1)


def test_names_of_our_own_models_are_not_for_others(monkeypatch):
    monkeypatch.setitem(kinds.CLIENT_MODELS, "mlp", Bilinear)
    with pytest.raises(SettingError, match="'mlp' is the name of a model of jaxrec's"):
        kinds.client_model("mf", 4, scale=0.1)


def test_an_encoder_reads_as_much_text_as_it_is_told():
    for method in ("local_only",):
        _, state, _, _ = trained(method, rounds=1, item_encoder="text", text_numbers=2)
        shapes = {leaf.shape[-2:] for leaf in jax.tree.leaves(state) if leaf.ndim > 1}
        assert (2, 2 * WIDTH) in shapes and (3, 2 * WIDTH) not in shapes
    made = trained("fedavg", rounds=1, item_encoder="text", text_numbers=2)[0]
    assert made.traffic.up == 4 * (2 * 2 * WIDTH + 2 * WIDTH + 2 * WIDTH * WIDTH)
    assert made.traffic.setup_down == 4 * ITEMS * 2


@pytest.mark.parametrize("method", ["local_only", "fedavg", "fedcia"])
def test_an_encoder_of_texts_needs_texts(method):
    module, given = METHODS[method](item_encoder="text")
    made = module.make(module.Config(**given), problem()[1])
    with pytest.raises(SettingError, match="item_encoder = 'text': the items have no texts"):
        made.init(jax.random.key(0), problem()[0]._replace(text=None))
