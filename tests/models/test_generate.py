"""Generation with cached keys and values against whole forward passes, one row at a time."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxrec.models import decoder
from jaxrec.models.generate import generate
from jaxrec.types import DataError, SettingError

WORDS = ["[UNK]", *"abcdefghijklmno"]
CONFIG = decoder.Config(
    vocabulary=len(WORDS),
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=4,
    inner=24,
    positions=40,
    input_bias=True,
)
NEW, LENGTH = 6, 7


@pytest.fixture(scope="module")
def model():
    """Weights large enough that the likeliest token changes from one place to the next."""
    rng = np.random.default_rng(3)
    take = lambda name, *shape: jnp.asarray(0.7 * rng.normal(size=shape), jnp.float32)
    return decoder.Decoder(*nnx.split(decoder.Llama(take, CONFIG)), CONFIG)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, len(WORDS), (4, LENGTH))
    lengths = np.array([[7], [4], [1], [5]])
    return tokens, np.arange(LENGTH) >= LENGTH - lengths


@partial(jax.jit, static_argnums=0)
def likeliest(graphdef, params, x):
    """The likeliest token after every prefix of `x` [T]."""
    llama = nnx.merge(graphdef, params)
    return llama.logits(llama(x[None]))[0].argmax(-1)


def stepwise(model, ids):
    """NEW likeliest tokens after one text, a whole forward pass for each."""
    ids = list(ids)
    for _ in range(NEW):
        padded = np.zeros(CONFIG.positions, int)
        padded[: len(ids)] = ids
        ids.append(int(likeliest(model.graphdef, model.params, padded)[len(ids) - 1]))
    return ids[-NEW:]


def test_greedy_is_the_step_by_step_argmax(model, prompts):
    found = generate(model, *prompts, max_new=NEW)
    for row, (ids, mask) in enumerate(zip(*prompts, strict=True)):
        np.testing.assert_array_equal(found.tokens[row], stepwise(model, ids[mask]))
    assert len(np.unique(found.tokens)) > 3
    np.testing.assert_array_equal(found.length, NEW)


def test_padding_may_stand_anywhere(model, prompts):
    tokens, mask = prompts
    order = np.argsort(~mask, axis=1, kind="stable")
    right = (np.take_along_axis(part, order, 1) for part in prompts)
    found = generate(model, *right, max_new=NEW)
    np.testing.assert_array_equal(found.tokens, generate(model, *prompts, max_new=NEW).tokens)
    other = np.where(mask, tokens, 9)
    np.testing.assert_array_equal(generate(model, other, mask, max_new=NEW).tokens, found.tokens)


def test_a_sample_depends_on_its_key_and_row_alone(model, prompts):
    tokens, mask = prompts
    rows = np.arange(4)
    sample = lambda order, key=0: generate(
        model,
        tokens[order],
        mask[order],
        jax.random.key(key),
        max_new=NEW,
        temperature=1.0,
        rows=order,
    )
    together = sample(rows).tokens
    np.testing.assert_array_equal(sample(rows).tokens, together)
    assert not np.array_equal(sample(rows, key=1).tokens, together)
    np.testing.assert_array_equal(sample(rows[::-1]).tokens[::-1], together)
    np.testing.assert_array_equal(
        sample(np.array([2, 2, 0, 2])).tokens, np.asarray(together)[[2, 2, 0, 2]]
    )


def test_samples_follow_the_softmax(model):
    tokens, size = np.full((2000, 1), 5), len(WORDS)
    llama = nnx.merge(model.graphdef, model.params)
    for temperature in (0.5, 3.0):
        found = generate(
            model, tokens, None, jax.random.key(0), max_new=1, temperature=temperature
        ).tokens
        expected = jax.nn.softmax(llama.logits(llama(tokens[:1]))[0, 0] / temperature)
        share = np.bincount(np.ravel(found), minlength=size) / len(tokens)
        # Five standard errors of a share.
        assert (np.abs(share - expected) < 5 * np.sqrt(expected / len(tokens)) + 1e-3).all()


def test_each_row_stops_at_its_own_token(model, prompts):
    whole = np.asarray(generate(model, *prompts, max_new=NEW).tokens)
    stop = (int(whole[0, 2]), int(whole[1, 0]))
    found = generate(model, *prompts, max_new=NEW, stop=stop)
    for row, tokens in enumerate(whole):
        end = int(np.argmax([*np.isin(tokens, stop), True]))
        assert found.length[row] == end
        np.testing.assert_array_equal(found.tokens[row], [*tokens[:end], *[-1] * (NEW - end)])
    assert found.length[1] == 0
    own = model._replace(config=replace(CONFIG, stop=stop))
    np.testing.assert_array_equal(generate(own, *prompts, max_new=NEW).tokens, found.tokens)
    never = generate(own, *prompts, max_new=NEW, stop=())
    np.testing.assert_array_equal(never.tokens, whole)


def test_vectors_may_stand_for_tokens(model, prompts):
    tokens, mask = prompts
    vectors = nnx.merge(model.graphdef, model.params).embed(tokens)
    found = generate(model, vectors, mask, max_new=NEW)
    np.testing.assert_array_equal(found.tokens, generate(model, tokens, mask, max_new=NEW).tokens)


def test_a_row_without_tokens_is_empty(model, prompts):
    tokens, mask = prompts
    mask = mask & np.array([[True], [False], [True], [True]])
    found = generate(model, tokens, mask, max_new=NEW)
    np.testing.assert_array_equal(found.length, [NEW, 0, NEW, NEW])


def test_a_common_context_is_as_if_it_stood_in_every_row(model, prompts):
    tokens, mask = prompts
    first = np.arange(1, 6)
    _, cache = nnx.merge(model.graphdef, model.params).extend(first[None])
    found = generate(model, *prompts, max_new=NEW, context=(cache,)).tokens
    for row in range(len(tokens)):
        whole = np.concatenate([first, tokens[row][mask[row]]])
        np.testing.assert_array_equal(found[row], stepwise(model, whole))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new": 0}, "max_new = 0, .* at least 1"),
        ({"max_new": 2, "temperature": -1.0}, "temperature = -1"),
        ({"max_new": 2, "temperature": 1.0}, "temperature = 1.0 samples: pass a key"),
        ({"max_new": 34}, "7 tokens of prompt and max_new = 34 .* 40 positions: shorten"),
    ],
)
def test_settings_that_cannot_work_are_refused(model, prompts, settings, message):
    with pytest.raises(SettingError, match=message):
        generate(model, *prompts, **settings)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Such a decoder read from a folder, its tokenizer's words single letters."""
    folder = tmp_path_factory.mktemp("written")
    tensors, rng = {}, np.random.default_rng(1)

    def take(name, *shape):
        tensors[name] = rng.normal(size=shape).astype(np.float32)
        return jnp.asarray(tensors[name])

    decoder.Llama(take, CONFIG)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "qwen2",
        "vocab_size": len(WORDS),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 40,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "eos_token_id": 3,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(
        models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return decoder.load(folder)


def test_stop_tokens_of_the_generation_settings_come_first(written):
    file = written.folder.path / "generation_config.json"
    for stop, expected in ((7, (7,)), ([1, 2], (1, 2)), (None, ())):
        file.write_text(json.dumps({"eos_token_id": stop}))
        assert decoder.load(written.folder.path).config.stop == expected
    file.write_text("{}")
    assert decoder.load(written.folder.path).config.stop == (3,)


def test_a_tokenizer_that_does_not_fit_is_refused(written, tmp_path):
    folder = written.folder
    assert folder.tokenizer(len(WORDS))(["a b c", "o"])["input_ids"] == [[1, 2, 3], [15]]
    with pytest.raises(DataError, match=r"tokenizer\.json: 16 tokens, but .* 9; use the tokenizer"):
        folder.tokenizer(9)
    with pytest.raises(DataError, match=r"tokenizer\.json: there is no such file.* fetch it again"):
        replace(folder, path=tmp_path).tokenizer(16)
    for content in ("[1]", "{}", '{"model": {}}', "{"):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match=r"tokenizer\.json: .* fetch it again"):
            replace(folder, path=tmp_path).tokenizer(16)
