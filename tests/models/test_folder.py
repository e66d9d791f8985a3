"""Whatever stands in a model's folder, reading it ends in one line of DataError."""

import itertools
import json

import pytest

from jaxrec.models.decoder_config import read_config
from jaxrec.models.encoder import load
from jaxrec.models.folder import Folder
from jaxrec.types import DataError

DEEP = "[" * 50_000 + "]" * 50_000
MUTATIONS = ["null", "[]", '"7"', "true", "-1", "NaN", "1e999", "9" * 300]
BERT = {
    "model_type": "bert", "vocab_size": 14, "hidden_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 3, "intermediate_size": 20, "max_position_embeddings": 16,
    "type_vocab_size": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
}  # fmt: skip
QWEN = {
    "model_type": "qwen2", "vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "head_dim": 4,
    "tie_word_embeddings": False, "eos_token_id": 2,
}  # fmt: skip
CASES = {
    "encoder": {
        "config.json": BERT,
        "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": False},
    },
    "decoder": {"config.json": QWEN, "generation_config.json": {"eos_token_id": [1, 2]}},
}


def write(folder, kind):
    for name, content in CASES[kind].items():
        (folder / name).write_text(json.dumps(content))


def told(folder, kind):
    """What is said of the folder, which lacks its weights."""
    try:
        load(folder) if kind == "encoder" else read_config(Folder(folder, kind))
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return str(error)


@pytest.mark.parametrize("kind", CASES)
def test_any_setting_of_a_model_may_be_of_any_type(tmp_path, kind):
    write(tmp_path, kind)
    for name, content in CASES[kind].items():
        for key, new in itertools.product(content, MUTATIONS):
            text = json.dumps(content | {key: "the place"}).replace('"the place"', new)
            (tmp_path / name).write_text(text)
            told(tmp_path, kind)
        for bad in (DEEP.encode(), b"\xff", b"", b'{"a": ' * 9999, text.encode()[:9]):
            (tmp_path / name).write_bytes(bad)
            assert f"{name}: " in told(tmp_path, kind)
        write(tmp_path, kind)


@pytest.mark.parametrize(
    ("kind", "name", "key", "value"),
    [
        ("encoder", "config.json", "layer_norm_eps", float("nan")),
        ("encoder", "config.json", "num_hidden_layers", 10**12),
        ("encoder", "config.json", "vocab_size", True),
        ("encoder", "sentence_bert_config.json", "max_seq_length", "7"),
        ("decoder", "config.json", "rms_norm_eps", -1.0),
        ("decoder", "config.json", "num_key_value_heads", -2),
        ("decoder", "generation_config.json", "eos_token_id", [[2]]),
    ],
)
def test_what_no_model_has_is_named(tmp_path, kind, name, key, value):
    write(tmp_path, kind)
    (tmp_path / name).write_text(json.dumps(CASES[kind][name] | {key: value}))
    message = told(tmp_path, kind)
    assert f"{name}: " in message and f"{key} = " in message
