"""The decoder against PyTorch's logits and gradients of tiny models, each tensor of them random.

The stored reference is made, where torch and transformers are installed, by

    python tests/models/test_decoder.py
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from jaxrec.models import decoder
from jaxrec.types import DataError

STORED = Path(__file__).with_name("decoder_reference.npz")
VOCABULARY, WIDTH, INNER, LAYERS, HEADS, LENGTH = 24, 16, 24, 2, 4, 9
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "hidden_act": "silu",
    "dtype": "float32",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def case(model_type, theta, tied, **more):
    """A config.json in the words of transformers 5."""
    rope = {"rope_type": "default", "rope_theta": theta}
    words = {"model_type": model_type, "tie_word_embeddings": tied, "rope_parameters": rope}
    return BASE | words | more


CASES = {
    "llama": case("llama", 1e4, False, num_key_value_heads=4),
    "llama-bias": case("llama", 5e5, True, attention_bias=True, mlp_bias=True),
    "llama3": case("llama", 5e5, False, head_dim=8, rope_parameters=LLAMA3),
    "qwen2": case("qwen2", 1e6, False),
    "qwen2-tied": case("qwen2", 1e4, True, num_key_value_heads=4),
    "qwen3": case("qwen3", 1e6, True, head_dim=8),
    "qwen3-bias": case("qwen3", 5e5, False, head_dim=6, num_key_value_heads=1, attention_bias=True),
}
MODES = ("tokens", "left", "vectors")


def random_tensors(config, seed=0):
    """Every tensor is random, so that no default (scale 1, bias 0) hides a mistake."""
    rng, tensors = np.random.default_rng(seed), {}

    def add(name, *shape, mean=0.0):
        tensors[f"{name}"] = (mean + 0.3 * rng.normal(size=shape)).astype(np.float32)

    def linear(name, inputs, outputs, bias=False):
        add(f"{name}.weight", outputs, inputs)
        if bias:
            add(f"{name}.bias", outputs)

    family, bias = config["model_type"], config.get("attention_bias", False)
    head = config.get("head_dim", WIDTH // HEADS)
    queries, keys = HEADS * head, config["num_key_value_heads"] * head
    add("model.embed_tokens.weight", VOCABULARY, WIDTH)
    for layer in (f"model.layers.{k}" for k in range(LAYERS)):
        for part, size in (("q", queries), ("k", keys), ("v", keys)):
            linear(f"{layer}.self_attn.{part}_proj", WIDTH, size, bias or family == "qwen2")
        linear(f"{layer}.self_attn.o_proj", queries, WIDTH, bias)
        if family == "qwen3":
            add(f"{layer}.self_attn.q_norm.weight", head, mean=1.0)
            add(f"{layer}.self_attn.k_norm.weight", head, mean=1.0)
        for part, inputs, outputs in (
            ("gate", WIDTH, INNER),
            ("up", WIDTH, INNER),
            ("down", INNER, WIDTH),
        ):
            linear(f"{layer}.mlp.{part}_proj", inputs, outputs, config.get("mlp_bias", False))
        add(f"{layer}.input_layernorm.weight", WIDTH, mean=1.0)
        add(f"{layer}.post_attention_layernorm.weight", WIDTH, mean=1.0)
    add("model.norm.weight", WIDTH, mean=1.0)
    if not config["tie_word_embeddings"]:
        add("lm_head.weight", VOCABULARY, WIDTH)
    return tensors


def write(folder, config=CASES["qwen2"], tensors=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_tensors(config) if tensors is None else tensors
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def inputs():
    """For each mode its inputs [3, T] or [3, T, D], its mask, and a weight for each logit."""
    rng, place = np.random.default_rng(1), np.arange(LENGTH)
    lengths = np.array([[LENGTH], [6], [1]])
    tokens = rng.integers(0, VOCABULARY, (3, LENGTH))
    vectors = rng.normal(size=(3, LENGTH, WIDTH)).astype(np.float32)
    masks = {
        "tokens": np.ones((3, LENGTH), bool),
        "left": place >= LENGTH - lengths,
        "vectors": place < lengths,
    }
    weights = rng.normal(size=(3, 3, LENGTH, VOCABULARY)).astype(np.float32)
    return {
        mode: (
            vectors if mode == "vectors" else tokens,
            masks[mode],
            weight * masks[mode][..., None],
        )
        for mode, weight in zip(MODES, weights, strict=True)
    }


def reference(folder, dtype="float32"):
    """Logits of each mode by transformers, and gradients of their weighted sum."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).eval()
    found, total = {}, 0.0
    for mode, (x, mask, weight) in inputs().items():
        position = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
        words = {"attention_mask": torch.tensor(mask.astype(int)), "position_ids": position}
        if mode == "vectors":
            vectors = torch.tensor(x, dtype=model.dtype, requires_grad=True)
            logits = model(inputs_embeds=vectors, **words).logits
        else:
            logits = model(input_ids=torch.tensor(x), **words).logits
        found[f"logits/{mode}"] = logits.detach().float().numpy() * mask[..., None]
        total = total + (logits * torch.tensor(weight)).sum()
    total.backward()
    found["gradient/vectors"] = vectors.grad.float().numpy()
    for name, parameter in model.named_parameters():
        found[f"gradient/{name}"] = parameter.grad.float().numpy()
    return found, model


@partial(jax.jit, static_argnums=0)
def ours(graphdef, params, given):
    """Logits of each mode, and gradients to the parameters and to the vectors."""

    def objective(params, vectors):
        model = nnx.merge(graphdef, params)
        x = [vectors if mode == "vectors" else model.embed(given[mode][0]) for mode in MODES]
        mask, weight = (jnp.concatenate([given[mode][k] for mode in MODES]) for k in (1, 2))
        logits = model.logits(model(jnp.concatenate(x), mask)) * mask[..., None]
        return (logits * weight).sum(), dict(zip(MODES, jnp.split(logits, len(MODES)), strict=True))

    gradients, logits = jax.grad(objective, (0, 1), has_aux=True)(params, given["vectors"][0])
    return logits, *gradients


@partial(jax.jit, static_argnums=0)
def states(graphdef, params, x, mask=None, context=()):
    return nnx.merge(graphdef, params)(x, mask, context)


def assert_close(found, expected, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **tolerance), found, expected)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return decoder.load(write(tmp_path_factory.mktemp("decoder")))


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_pytorchs(tmp_path, name):
    model = decoder.load(write(tmp_path / "model", CASES[name]))
    logits, gradients, to_vectors = ours(model.graphdef, model.params, inputs())
    with np.load(STORED) as stored:
        expected = {
            key.removeprefix(f"{name}/"): stored[key]
            for key in stored
            if key.startswith(f"{name}/")
        }
    assert_close(logits, {mode: expected[f"logits/{mode}"] for mode in MODES}, atol=2e-5)
    np.testing.assert_allclose(to_vectors, expected["gradient/vectors"], rtol=2e-5, atol=2e-4)
    tensors = {
        key.removeprefix("gradient/"): value
        for key, value in expected.items()
        if key.startswith("gradient/") and key != "gradient/vectors"
    }
    # Read as if they were weights, PyTorch's gradients stand where ours do.
    wanted = decoder.load(write(tmp_path / "gradient", CASES[name], tensors)).params
    assert_close(gradients, wanted, rtol=2e-5, atol=5e-4)


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_the_stored_reference_is_what_pytorch_computes(tmp_path, name):
    found, torch_model = reference(write(tmp_path / "ours", CASES[name]))
    with np.load(STORED) as stored:
        for key, value in found.items():
            np.testing.assert_allclose(value, stored[f"{name}/{key}"], rtol=2e-5, atol=5e-4)
    torch_model.save_pretrained(tmp_path / "theirs", max_shard_size="8KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    ours, theirs = decoder.load(tmp_path / "ours"), decoder.load(tmp_path / "theirs")
    assert theirs.config == replace(ours.config, stop=theirs.config.stop)
    assert_close(theirs.params, ours.params, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_as_near_as_pytorchs(tmp_path, name):
    folder = write(tmp_path, CASES[name])
    theirs, _ = reference(folder, "bfloat16")
    model = decoder.load(folder, jnp.bfloat16)
    logits, *_ = ours(model.graphdef, model.params, inputs())
    with np.load(STORED) as stored:
        exact = {mode: stored[f"{name}/logits/{mode}"] for mode in MODES}
    rms = lambda differences: float(np.sqrt(np.mean(np.square(differences))))
    error = rms([logits[mode] - exact[mode] for mode in MODES])
    assert error < 1.2 * rms([theirs[f"logits/{mode}"] - exact[mode] for mode in MODES])


def test_settings_can_be_told_apart(tmp_path):
    """Each setting that the references vary moves the logits by far more than they may differ."""
    model = decoder.load(write(tmp_path, CASES["llama3"]))
    x = inputs()["tokens"][0]
    logits = nnx.merge(model.graphdef, model.params).logits
    expected = logits(states(model.graphdef, model.params, x))
    for change in ({"theta": 1e6}, {"scaling": None}, {"epsilon": 1e-6}):
        config = replace(model.config, **change)
        graphdef = nnx.graphdef(nnx.eval_shape(lambda c=config: zeros(c)))
        found = logits(states(graphdef, model.params, x))
        assert np.abs(found - expected).max() > 1e-3


def zeros(config):
    return decoder.Llama(lambda name, *shape: jnp.zeros(shape), config)


@pytest.mark.parametrize("name", CASES)
def test_settings_in_the_words_of_transformers_4(tmp_path, name):
    config = {**CASES[name]}
    rope = config.pop("rope_parameters")
    older = {"rope_theta": rope["rope_theta"], "torch_dtype": config.pop("dtype")}
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    older["rope_scaling"] = scaling if len(scaling) > 1 else None
    tensors = random_tensors(CASES[name])
    new = decoder.load(write(tmp_path / "new", CASES[name], tensors))
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    old = decoder.load(write(tmp_path / "old", config | older, tensors | more))
    assert old.config == new.config
    assert_close(old.params, new.params, rtol=0)


def test_shards_are_one_model(tmp_path, model):
    tensors = random_tensors(CASES["qwen2"])
    sharded = write(tmp_path)
    (sharded / "model.safetensors").unlink()
    places = {name: f"model-{k % 3}.safetensors" for k, name in enumerate(tensors)}
    for shard in set(places.values()):
        part = {name: tensors[name] for name in tensors if places[name] == shard}
        save_file(part, sharded / shard)
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_close(decoder.load(sharded).params, model.params, rtol=0)
    (sharded / "model-1.safetensors").unlink()
    with pytest.raises(DataError, match=r"model-1\.safetensors: there is no such file.* fetch it"):
        decoder.load(sharded)
    index.write_text("{}")
    with pytest.raises(DataError, match=r"index\.json: no weight_map.* fetch it again"):
        decoder.load(sharded)
    del places["model.norm.weight"]
    kept = {name: tensors[name] for name in places}
    save_file(kept, sharded / "model-1.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(kept, "model-1.safetensors")}))
    with pytest.raises(DataError, match=r"index\.json: tensor 'model\.norm\.weight' .* found None"):
        decoder.load(sharded)


def test_half_precision(tmp_path, model):
    """Parameters and states are bf16, logits f32 and near those of f32."""
    tensors = {k: jnp.asarray(v, jnp.bfloat16) for k, v in random_tensors(CASES["qwen2"]).items()}
    folder = write(tmp_path, CASES["qwen2"] | {"dtype": "bfloat16"})
    safetensors.flax.save_file(tensors, folder / "model.safetensors")
    half = decoder.load(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    x, mask, _ = inputs()["left"]
    found = states(half.graphdef, half.params, x, mask)
    assert found.dtype == jnp.bfloat16
    logits = nnx.merge(half.graphdef, half.params).logits(found) * mask[..., None]
    assert logits.dtype == jnp.float32
    with np.load(STORED) as stored:
        exact = stored["qwen2/logits/left"]
    assert np.abs(logits - exact).max() < 0.03 * np.abs(exact).max()
    assert decoder.load(folder, jnp.float32).params.embedding[...].dtype == jnp.float32


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=3, max_size=3))
def test_padding_changes_nothing_wherever_it_stands(model, rows):
    mask = np.array(rows)
    x = np.random.default_rng(0).integers(0, VOCABULARY, mask.shape)
    found = states(model.graphdef, model.params, x, mask)
    assert np.isfinite(found).all()
    order = np.argsort(~mask, axis=1, kind="stable")  # what is real first
    packed = states(model.graphdef, model.params, np.take_along_axis(x, order, 1))
    found = np.take_along_axis(found, order[..., None], 1)
    real = np.arange(8) < mask.sum(1, keepdims=True)
    np.testing.assert_allclose(found[real], packed[real], atol=2e-5)


def test_tokens_are_their_embeddings(model):
    x, mask, _ = inputs()["left"]
    vectors = nnx.merge(model.graphdef, model.params).embed(x)
    np.testing.assert_array_equal(
        states(model.graphdef, model.params, vectors, mask),
        states(model.graphdef, model.params, x, mask),
    )


def test_a_common_prefix_is_computed_once(model):
    """Batch 1 for a prompt equals the prompt in every row, in states and gradients."""
    x, mask, _ = inputs()["left"]
    weight = np.random.default_rng(2).normal(size=(*x.shape, WIDTH)) * mask[..., None]
    prompt = np.arange(5)[None]

    def joined(params, vectors):
        model = nnx.merge(model_.graphdef, params)
        first = jnp.broadcast_to(vectors, (len(x), *vectors.shape[1:]))
        whole = jnp.concatenate([first, model.embed(x)], axis=1)
        real = jnp.concatenate([jnp.ones(first.shape[:2], bool), mask], axis=1)
        return (model(whole, real)[:, prompt.size :] * weight).sum()

    def shared(params, vectors):
        model = nnx.merge(model_.graphdef, params)
        _, cache = model.extend(vectors)
        assert cache.key.shape[:3] == (LAYERS, 1, prompt.size)
        return (model(x, mask, (cache,), remat=True) * weight).sum()

    model_, vectors = model, nnx.merge(model.graphdef, model.params).embed(prompt)
    expected = jax.jit(jax.value_and_grad(joined, (0, 1)))(model.params, vectors)
    found = jax.jit(jax.value_and_grad(shared, (0, 1)))(model.params, vectors)
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_text_in_parts_is_the_text(model):
    llama = nnx.merge(model.graphdef, model.params)
    x, mask, _ = inputs()["left"]
    caches, found = (), []
    for part in (slice(0, 3), slice(3, 6), slice(6, LENGTH)):
        part, cache = llama.extend(x[:, part], mask[:, part], caches)
        caches, found = (*caches, cache), [*found, part]
    found = np.concatenate(found, axis=1)
    expected = states(model.graphdef, model.params, x, mask)
    np.testing.assert_allclose(found[mask], expected[mask], atol=2e-5)


def test_gradients_are_finite_with_an_empty_row(model):
    x, mask, _ = inputs()["left"]
    mask = mask & np.array([[True], [True], [False]])
    objective = lambda params: nnx.merge(model.graphdef, params)(x, mask).sum()
    gradient = jax.jit(jax.grad(objective))(model.params)
    chex.assert_tree_all_finite(gradient)


def test_random_weights_make_any_architecture():
    config = decoder.Config(
        vocabulary=11,
        width=8,
        layers=3,
        heads=4,
        kv_heads=2,
        head_width=6,
        inner=10,
        positions=32,
        head_norm=True,
        input_bias=True,
    )
    one = decoder.random(config, jax.random.key(0), jnp.bfloat16)
    assert one.params.layers.query.kernel[...].shape == (3, 8, 24)
    kernel = np.asarray(one.params.layers.query.kernel[...], np.float32)
    assert not np.array_equal(kernel[0], kernel[1])
    logits = nnx.merge(one.graphdef, one.params).logits(jnp.ones((2, 8), jnp.bfloat16))
    assert logits.shape == (2, 11)


def without(config, *names):
    return {name: value for name, value in config.items() if name not in names}


ROPE = {"rope_type": "default", "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model_type": "mistral"}, "model_type = 'mistral' is not supported, only 'llama' or"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, only 'silu'"),
        ({"use_sliding_window": True}, "use_sliding_window = True is not supported"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types = 'sliding_attention' is not supported",
        ),
        ({"quantization_config": {"bits": 4}}, r"quantization_config = \{'bits': 4\} is not"),
        ({"dtype": "int8"}, "dtype = 'int8' is not supported"),
        ({"dtype": None, "torch_dtype": "int8"}, "dtype = 'int8' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        (
            {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor = 0.5 is not supported",
        ),
        ({"rope_parameters": ROPE | YARN}, r"rope_parameters\.rope_type = 'yarn'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2}},
            r"rope_parameters\.rope_type = 'linear'",
        ),
        ({"rope_parameters": ROPE | {"factor": 2.0}}, r"rope_parameters\.factor = 2.0 is not"),
        (
            {"rope_parameters": {"full_attention": ROPE}},
            r"rope_parameters\.full_attention = .* is not supported",
        ),
    ],
)
def test_a_setting_that_is_not_followed_is_refused(tmp_path, setting, message):
    with pytest.raises(DataError, match=rf"config\.json: {message}.*; use another decoder"):
        decoder.load(write(tmp_path, CASES["qwen2"] | setting))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (without(CASES["qwen2"], "hidden_size"), "no setting 'hidden_size'"),
        (without(CASES["qwen2"], "model_type"), "no setting 'model_type'"),
        (
            CASES["llama3"] | {"rope_parameters": without(LLAMA3, "factor")},
            r"Missing required keys in `rope_parameters` .*'llama3'.*'factor'",
        ),
        (CASES["qwen2"] | {"num_hidden_layers": "2"}, "num_hidden_layers = '2' is no positive"),
        (
            CASES["llama3"] | {"rope_parameters": LLAMA3 | {"factor": "8"}},
            r"rope_parameters\.factor = '8' is no positive",
        ),
        (
            CASES["llama3"] | {"rope_parameters": LLAMA3 | {"rope_theta": None}},
            r"rope_parameters\.rope_theta = None is no positive",
        ),
        (CASES["qwen2"] | {"tie_word_embeddings": "no"}, "tie_word_embeddings.*expected bool"),
        (CASES["qwen2"] | {"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        (CASES["qwen2"] | {"head_dim": 3}, "head_dim = 3"),
    ],
)
def test_settings_that_are_absent_or_contradict_are_refused(tmp_path, config, message):
    write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=rf"(?s)config\.json: .*{message}.*fetch"):
        decoder.load(tmp_path)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    name, tensors = "model.layers.1.mlp.down_proj.weight", random_tensors(CASES["qwen2"])
    again = "fetch the folder again"
    with pytest.raises(DataError, match=rf"'{name}' of shape \(16, 24\) .* found None; .*{again}"):
        decoder.load(write(tmp_path, tensors=without(tensors, name)))
    with pytest.raises(DataError, match=rf"wanted, found \(24, 16\); .*{again}"):
        decoder.load(write(tmp_path, tensors=tensors | {name: tensors[name].T.copy()}))
    with pytest.raises(DataError, match=rf"safetensors: tensor '{name}' holds I8.*use another"):
        decoder.load(write(tmp_path, tensors=tensors | {name: tensors[name].astype(np.int8)}))
    more = {"model.layers.2.mlp.down_proj.weight": tensors[name]}
    with pytest.raises(
        DataError, match=r"no place in this model, the first 'model\.layers\.2.*use"
    ):
        decoder.load(write(tmp_path, tensors=tensors | more))
    with pytest.raises(DataError, match=r"the first 'model\.layers\.0\.self_attn\.k_proj\.bias'"):
        decoder.load(write(tmp_path, CASES["qwen2"] | {"model_type": "llama"}, tensors))


def test_a_tied_head_may_be_stored_but_not_differ(tmp_path):
    config = CASES["qwen2-tied"]
    tensors = random_tensors(config)
    table = tensors["model.embed_tokens.weight"]
    decoder.load(write(tmp_path, config, tensors | {"lm_head.weight": table}))
    with pytest.raises(DataError, match=r"safetensors: 'lm_head\.weight' differs.*set it to"):
        decoder.load(write(tmp_path, config, tensors | {"lm_head.weight": table + 1}))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "absent", "other"])
def test_a_file_that_is_damaged_or_absent_is_named(tmp_path, name, damage):
    file = write(tmp_path) / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "other":
        file.write_text("[1]")
    else:
        file.unlink()
    with pytest.raises(DataError, match=rf"{name}: .* A decoder is a folder with.*fetch it again"):
        decoder.load(tmp_path)


if __name__ == "__main__":
    import tempfile

    stored = {}
    for name, config in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found, _ = reference(write(Path(folder), config))
        stored |= {f"{name}/{key}": value for key, value in found.items()}
    np.savez_compressed(STORED, **stored)
