"""Low-rank adapters against the merged model, on the decoder and on the encoder."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxrec.models import decoder, encoder, lora
from jaxrec.models.linear import multiply
from jaxrec.types import DataError, SettingError

NAMES, RANK, ALPHA, CLIENTS = ("gate", "up", "down", "query"), 3, 6.0, 3
CONFIG = decoder.Config(
    vocabulary=13, width=8, layers=2, heads=2, kv_heads=1, head_width=4, inner=12, positions=32
)
TOKENS = np.random.default_rng(0).integers(0, 13, (2, 5))


def noise(seed=0):
    rng = np.random.default_rng(seed)
    return lambda name, *shape: jnp.asarray(0.5 * rng.normal(size=shape), jnp.float32)


def build(config):
    return decoder.Decoder(*nnx.split(decoder.Llama(noise(), config)), config)


@pytest.fixture(scope="module")
def model():
    return build(CONFIG)


@pytest.fixture(scope="module")
def small_bert():
    config = encoder.Config(
        vocabulary=13,
        width=8,
        layers=2,
        heads=2,
        inner=12,
        positions=16,
        types=2,
        epsilon=1e-6,
        activation="gelu",
        max_tokens=16,
    )
    return nnx.split(encoder.Bert(noise(), config))


def noisy(pairs, seed=0):
    """The pairs with noise in B, which is zero at first."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape) * 0.3, pairs)


def forward(model, params):
    return nnx.merge(model.graphdef, params)(TOKENS)


def states(model, params):
    return _states(model.graphdef, params)


@partial(jax.jit, static_argnums=0)
def _states(graphdef, params):
    return nnx.merge(graphdef, params)(TOKENS)


def assert_close(found, expected, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), found, expected)


def test_names_and_sizes(model):
    pairs = lora.init(model.params, ("gate", "o.*t|query"), RANK, jax.random.key(1))
    assert jax.tree.map(jnp.shape, pairs) == {
        "layers.gate": ((2, 8, RANK), (2, RANK, 12)),
        "layers.output": ((2, 8, RANK), (2, RANK, 8)),
        "layers.query": ((2, 8, RANK), (2, RANK, 8)),
    }
    assert all((pair.up == 0).all() for pair in pairs.values())
    down = pairs["layers.gate"].down
    assert 0.9 * 8**-0.5 < np.abs(down).max() <= 8**-0.5
    assert not np.allclose(down, pairs["layers.query"].down)
    assert not np.allclose(down[0], down[1])


def test_a_fresh_lora_changes_nothing(model):
    pairs = lora.init(model.params, NAMES, RANK, jax.random.key(1))
    expected = states(model, model.params)
    np.testing.assert_array_equal(states(model, lora.apply(model.params, pairs, ALPHA)), expected)


def test_applied_is_merged(model):
    """x W + (x A) B alpha / R is x (W + alpha / R A B)."""
    pairs = noisy(lora.init(model.params, NAMES, RANK, jax.random.key(1)))
    merged = lora.merge(model.params, pairs, ALPHA)
    kernel, pair = model.params.layers.gate.kernel[...], pairs["layers.gate"]
    expected = kernel + ALPHA / RANK * np.einsum("lir,lro->lio", *pair)
    np.testing.assert_allclose(merged.layers.gate.kernel[...], expected, atol=1e-5)
    expected = states(model, merged)
    assert np.abs(expected - states(model, model.params)).max() > 0.1
    applied = lora.apply(model.params, pairs, ALPHA)
    np.testing.assert_allclose(states(model, applied), expected, atol=1e-4)
    assert_close(lora.merge(merged, pairs, -ALPHA), model.params, atol=1e-5)


def test_one_lora_on_another(model):
    shared, own = (
        noisy(lora.init(model.params, names, RANK, jax.random.key(1)), seed)
        for seed, names in enumerate((NAMES, ("gate", "value")))
    )
    both = lora.apply(lora.apply(model.params, shared, ALPHA), own, 1.0)
    merged = lora.merge(lora.merge(model.params, shared, ALPHA), own, 1.0)
    np.testing.assert_allclose(states(model, both), states(model, merged), atol=2e-4)
    inside = lora.merge(lora.apply(model.params, own, 1.0), shared, ALPHA)
    np.testing.assert_allclose(states(model, inside), states(model, merged), atol=2e-4)


def test_clients_train_their_own_over_one_base(model):
    """vmap over clients equals a loop; the base is neither mapped nor changed; losses fall."""
    keys = jax.random.split(jax.random.key(2), CLIENTS)
    start = jax.vmap(lambda key: lora.init(model.params, NAMES, RANK, key))(keys)
    targets = np.random.default_rng(3).normal(size=(CLIENTS, *TOKENS.shape, CONFIG.width))

    def step(pairs, target):
        def loss(pairs):
            return jnp.mean((forward(model, lora.apply(model.params, pairs, ALPHA)) - target) ** 2)

        value, gradients = jax.value_and_grad(loss)(pairs)
        return jax.tree.map(lambda p, g: p - 0.5 * g, pairs, gradients), value

    of = lambda client, tree: jax.tree.map(lambda leaf: leaf[client], tree)
    together, alone, losses = jax.jit(jax.vmap(step)), jax.jit(step), []
    pairs, single = start, [of(client, start) for client in range(CLIENTS)]
    for _ in range(8):
        pairs, values = together(pairs, targets)
        losses.append(values)
        single = [alone(own, target)[0] for own, target in zip(single, targets, strict=True)]
    assert (losses[-1] < 0.95 * losses[0]).all()
    for client in range(CLIENTS):
        assert_close(of(client, pairs), single[client], atol=1e-4)


def test_the_base_is_not_copied_for_the_clients(model):
    """No product has a kernel with a client axis, and none has the size of W's gradient."""
    pairs = lora.init(model.params, NAMES, RANK, jax.random.key(1))
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * CLIENTS), pairs)
    loss = lambda pairs: forward(model, lora.apply(model.params, pairs, ALPHA)).sum()
    program = str(jax.make_jaxpr(jax.vmap(jax.grad(loss)))(many))
    width, inner = CONFIG.width, CONFIG.inner
    for size in (f"{width},{inner}]", f"{inner},{width}]"):
        assert f"f32[{CONFIG.layers},{size}" in program
        assert f"f32[{CLIENTS},{size}" not in program
        assert f"f32[{CLIENTS},{CONFIG.layers},{size}" not in program


def test_gradients_are_those_of_the_merged_model(model):
    pairs = noisy(lora.init(model.params, NAMES, RANK, jax.random.key(1)))
    weight = np.random.default_rng(1).normal(size=(*TOKENS.shape, CONFIG.width))
    gradient = lambda change: jax.jit(
        jax.grad(lambda pairs: (forward(model, change(model.params, pairs, ALPHA)) * weight).sum())
    )(pairs)
    assert_close(gradient(lora.apply), gradient(lora.merge), rtol=1e-3, atol=1e-3)


def test_dropout_of_the_input(small_bert):
    """Its mean is the model without it."""
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    params = small_bert[1]
    pairs = noisy(lora.init(params, ("query",), RANK, jax.random.key(1)))

    @jax.jit
    @jax.vmap
    def change(key):
        applied = lora.apply(params, pairs, ALPHA, dropout=0.5, key=key)
        kernels = [applied.layers[k].query.kernel.get_value() for k in range(2)]
        return jnp.stack([multiply(x, kernel) - x @ kernel.kernel for kernel in kernels])

    exact = jnp.stack([x @ pair.down @ pair.up * ALPHA / RANK for _, pair in sorted(pairs.items())])
    keys = jax.random.split(jax.random.key(0), 4000)
    found = change(keys)
    error = np.abs(found.mean(0) - exact)
    assert (error < 5 * found.std(0) / len(keys) ** 0.5 + 1e-4).all()
    assert not np.allclose(found[0], found[1])


def test_dropout_in_stacked_layers(model):
    pairs = noisy(lora.init(model.params, NAMES, RANK, jax.random.key(1)))
    run = lambda key, rate: states(
        model, lora.apply(model.params, pairs, ALPHA, dropout=rate, key=key)
    )
    one, same, other = (run(jax.random.key(k), 0.3) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_array_equal(
        run(None, 0.0), states(model, lora.apply(model.params, pairs, ALPHA))
    )
    with pytest.raises(SettingError, match=r"dropout = 0\.3 needs a key"):
        run(None, 0.3)


def test_the_encoder_takes_one_too(small_bert):
    graphdef, params = small_bert
    pairs = noisy(lora.init(params, ("query", "value", "down"), RANK, jax.random.key(1)))
    assert sorted(pairs) == [f"layers.{k}.{n}" for k in (0, 1) for n in ("down", "query", "value")]
    run = jax.jit(lambda params: nnx.merge(graphdef, params)(TOKENS, np.ones(TOKENS.shape, bool)))
    expected = run(lora.merge(params, pairs, ALPHA))
    assert np.abs(expected - run(params)).max() > 0.01
    np.testing.assert_allclose(run(lora.apply(params, pairs, ALPHA)), expected, atol=1e-4)


def test_half_precision_base(model):
    """The base is bf16, the pairs and their gradients f32, the states bf16."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    pairs = noisy(lora.init(params, NAMES, RANK, jax.random.key(1)))
    found = states(model, lora.apply(params, pairs, ALPHA))
    assert found.dtype == jnp.bfloat16
    assert lora.merge(params, pairs, ALPHA).layers.gate.kernel[...].dtype == jnp.bfloat16
    expected = states(model, lora.apply(model.params, pairs, ALPHA))
    assert np.abs(found.astype(jnp.float32) - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("clients", [None, CLIENTS])
def test_saved_alone_and_read_again(model, tmp_path, clients):
    pairs = noisy(lora.init(model.params, NAMES, RANK, jax.random.key(1)))
    if clients:
        pairs = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * 2, leaf * 3]), pairs)
    lora.save(tmp_path / "lora.safetensors", pairs, ALPHA)
    found, alpha = lora.load(tmp_path / "lora.safetensors", model.params)
    assert alpha == ALPHA
    assert_close(found, pairs, rtol=0)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(pairs))
    assert size <= (tmp_path / "lora.safetensors").stat().st_size < size + 2000


def test_a_checkpoint_that_does_not_fit_is_refused(model, tmp_path):
    file = tmp_path / "lora.safetensors"
    remedy = "use the LoRA with the model it was trained for"
    pairs = lora.init(model.params, NAMES, RANK, jax.random.key(1))
    wider = build(replace(CONFIG, inner=16))
    lora.save(file, pairs, ALPHA)
    with pytest.raises(
        DataError, match=rf"lora.safetensors: 'layers\.down' has A \(2, 12, 3\).*{remedy}"
    ):
        lora.load(file, wider.params)
    lora.save(file, {"layers.other": pairs["layers.gate"]}, ALPHA)
    with pytest.raises(
        DataError, match=rf"lora.safetensors: .* no linear layer 'layers\.other'.*{remedy}"
    ):
        lora.load(file, model.params)


@pytest.mark.parametrize("damage", ["cut", "absent", "other"])
def test_a_checkpoint_that_is_damaged_is_refused(model, tmp_path, damage):
    from safetensors.numpy import save_file

    file = tmp_path / "lora.safetensors"
    lora.save(file, lora.init(model.params, NAMES, RANK, jax.random.key(1)), ALPHA)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "absent":
        file.unlink()
    else:
        save_file({"a": np.zeros(3)}, file)
    with pytest.raises(DataError, match=r"lora\.safetensors: .* write it again by save"):
        lora.load(file, model.params)


def test_wrong_uses_are_refused(model):
    key = jax.random.key(1)
    with pytest.raises(SettingError, match=r"ends in 'gates'; there are layers\.\w+, "):
        lora.init(model.params, ("gates",), RANK, key)
    with pytest.raises(SettingError, match="rank = 0: at least 1"):
        lora.init(model.params, NAMES, 0, key)
    pairs = lora.init(model.params, NAMES, RANK, key)
    many = jax.tree.map(lambda leaf: leaf[None], pairs)
    with pytest.raises(DataError, match=r"'layers\.down' has A \(1, 2, 12, 3\).*under jax\.vmap"):
        lora.apply(model.params, many, ALPHA)
