"""A decoder in this process answers prompts: each by itself, whatever else is asked."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxrec import llm
from jaxrec.llm import Prompt, Usage
from jaxrec.types import SettingError

WORDS = ["[UNK]", *"abcdefghijklmno", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Qwen2 of two layers that knows a few letters."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(0)
    width, inner, heads, kv = 16, 24, 4, 2
    shapes = {
        "model.embed_tokens.weight": (len(WORDS), width),
        "lm_head.weight": (len(WORDS), width),
    }
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {f"{at}.input_layernorm.weight": (width,)}
        shapes |= {f"{at}.post_attention_layernorm.weight": (width,)}
        for name, rows in (("q", heads * 4), ("k", kv * 4), ("v", kv * 4)):
            shapes |= {f"{at}.self_attn.{name}_proj.weight": (rows, width)}
            shapes |= {f"{at}.self_attn.{name}_proj.bias": (rows,)}
        shapes |= {f"{at}.self_attn.o_proj.weight": (width, width)}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (width, inner)}
    shapes |= {"model.norm.weight": (width,)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "qwen2", "vocab_size": len(WORDS), "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": 2, "num_attention_heads": heads,
        "num_key_value_heads": kv, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "eos_token_id": WORDS.index("<|im_end|>"),
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    known = {word: k for k, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.add_special_tokens(WORDS[-2:])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


ASKED = [Prompt("a b", letters, seed, 6) for seed, letters in enumerate(("c", "d e f g h", "n o"))]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_depends_on_its_prompt_and_seed_alone(folder, temperature):
    usage = Usage()
    complete = llm.local(folder, batch=2, temperature=temperature, usage=usage)
    longer = Prompt("a", "b c d", 7, 9)
    answers = complete([*ASKED, longer])
    assert all(answer.text for answer in answers)
    assert set(" ".join(answer.text for answer in answers).split()) <= set(WORDS)
    assert usage.calls == 4
    assert usage.answer_tokens >= sum(len(answer.text.split()) for answer in answers)
    assert [complete([prompt])[0] for prompt in ASKED] == answers[:3]
    again = llm.local(folder, batch=3, temperature=temperature)
    assert again([longer, *ASKED[::-1]]) == answers[::-1]
    reseeded = complete([prompt._replace(seed=prompt.seed + 50) for prompt in ASKED])
    assert (reseeded != answers[:3]) == (temperature > 0)


def test_a_prompt_that_is_too_long_fails_alone_and_answers_are_kept(folder, tmp_path):
    usage = Usage()
    complete = llm.local(folder, batch=2, answers=tmp_path, usage=usage)
    answers = complete([*ASKED, Prompt("a", "b " * 70, 0, 6)])
    assert [answer.text is None for answer in answers] == [False, False, False, True]
    assert "tokens" in answers[3].failure
    assert usage.failures == 1
    other = llm.local(folder, batch=2, answers=tmp_path, usage=usage)
    assert other(ASKED) == answers[:3]
    assert (usage.calls, usage.cached) == (3, 3)


def test_prompts_wear_what_the_model_was_trained_in(folder, tmp_path):
    dressed = llm._dress(folder)("be short", "hello")
    assert dressed == (
        "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    (tmp_path / "tokenizer.json").write_text('"<|start_header_id|>"')
    assert llm._dress(tmp_path)("s", "u").endswith(
        "<|start_header_id|>user<|end_header_id|>\n\nu<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert llm._dress(tmp_path / "none")("s", "u") == "s\n\nu\n\n"


def test_settings_that_cannot_work_are_refused(folder, tmp_path):
    with pytest.raises(SettingError, match=f"model = '{tmp_path}'.*config.json"):
        llm.local(tmp_path)
    with pytest.raises(SettingError, match="concurrency = 0"):
        llm.local(folder, batch=0)
    assert llm.local(folder)([]) == []
