"""A decoder in this process answers prompts: each by itself, whatever else is asked."""

import json
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from jaxrec.llm import local_decoder
from jaxrec.llm.protocol import Prompt, Usage
from jaxrec.models import decoder
from jaxrec.models.folder import Folder
from jaxrec.models.generate import generate
from jaxrec.types import DataError, LLMError, SettingError

WORDS = ["[UNK]", *"abcdefghijklmno", "<|im_start|>", "<|im_end|>"]
STOPS = ["<|im_end|>", "m", "n", "o"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Qwen2 of two layers that knows a few letters and ends its answers soon."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(9)
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
        "hidden_act": "silu", "eos_token_id": [WORDS.index(word) for word in STOPS],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    known = {word: k for k, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.add_special_tokens(WORDS[-2:])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


ASKED = [Prompt("a b", letters, seed, 16) for seed, letters in enumerate(("c", "d e f g h", "n o"))]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_an_answer_depends_on_its_prompt_and_seed_alone(folder, temperature):
    usage = Usage()
    complete = local_decoder.local(folder, batch=2, temperature=temperature, usage=usage)
    longer = Prompt("a", "b b b", 7, 20)
    answers = complete([*ASKED, longer])
    assert all(answer.text for answer in answers)
    assert set(" ".join(answer.text for answer in answers).split()) <= set(WORDS)
    assert usage.calls == 4
    assert usage.answer_tokens >= sum(len(answer.text.split()) for answer in answers)
    assert [complete([prompt])[0] for prompt in ASKED] == answers[:3]
    again = local_decoder.local(folder, batch=3, temperature=temperature)
    assert again([longer, *ASKED[::-1]]) == answers[::-1]
    reseeded = complete([prompt._replace(seed=prompt.seed + 50) for prompt in ASKED])
    assert (reseeded != answers[:3]) == (temperature > 0)


def test_a_prompt_that_is_too_long_fails_alone_and_answers_are_kept(folder, tmp_path):
    usage = Usage()
    complete = local_decoder.local(folder, batch=2, answers=tmp_path, usage=usage)
    answers = complete([*ASKED, Prompt("a", "b " * 70, 0, 6)])
    assert [answer.text is None for answer in answers] == [False, False, False, True]
    assert "tokens" in answers[3].failure
    assert usage.failures == 1
    other = local_decoder.local(folder, batch=2, answers=tmp_path, usage=usage)
    assert other(ASKED) == answers[:3]
    assert (usage.calls, usage.cached) == (3, 3)


def test_an_answer_that_is_cut_or_empty_is_neither_used_nor_kept(folder, tmp_path):
    usage = Usage()
    complete = local_decoder.local(folder, batch=2, answers=tmp_path, usage=usage)
    whole, empty = ASKED[0], Prompt("a", "g h i j", 7, 16)
    answers = complete([empty, whole._replace(max_tokens=3), whole])
    assert [answer.text is None for answer in answers] == [True, True, False]
    assert answers[0].failure.startswith("empty")
    assert answers[1].failure.startswith("cut at max_tokens = 3")
    assert (usage.calls, usage.empty, usage.cut) == (3, 1, 1)
    assert len(list(tmp_path.rglob("*.json"))) == 1
    with pytest.raises(LLMError, match=r"local.*8 of 8 calls refused or unusable, the last: empty"):
        local_decoder.local(folder, batch=2)([empty._replace(seed=k) for k in range(20)])


CHATML = """
{%- if tools -%}{{- '<tool_call>' -}}{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""
LLAMA3 = """
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' -}}
    {{- message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}"""
GEMMA = """
{{- bos_token + '<start_of_turn>user\n' -}}
{%- for message in messages -%}{{- message['content'] | trim + '\n\n' -}}{%- endfor -%}
{{- '<end_of_turn>\n' -}}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"""
MISTRAL = """
{{- bos_token + '[INST] ' + messages[0]['content'] + '\n\n' + messages[1]['content'] -}}
{{- '[/INST]' -}}"""
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "none": None}
SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]",
]  # fmt: skip


def of_bytes(folder, template, normalizer=None, **added):
    """A tokenizer of bytes that puts <s> before a text, with a chat template or without one."""
    known = {letter: k for k, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(known, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(token, special=True, **added) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"bos_token": "<s>"} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return Folder(folder, "decoder").tokenizer(1000)


@pytest.fixture
def tokenizer_of(tmp_path):
    return partial(of_bytes, tmp_path)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            CHATML,
            "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            LLAMA3,
            "<s><|start_header_id|>system<|end_header_id|>\n\nbe short<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (None, "<s>be short\n\nhello\n\n"),
    ],
    ids=["chatml", "llama3", "none"],
)
def test_prompts_wear_what_the_model_was_trained_in(tokenizer_of, template, expected):
    """The text is the template's, and its special tokens are tokens, <s> once."""
    tokenizer = tokenizer_of(template)
    (ids,) = local_decoder.tokenize(tokenizer, [Prompt("be short", "hello")])
    assert tokenizer.decode(ids) == expected
    assert sum(k >= 256 for k in ids) == sum(expected.count(token) for token in SPECIAL)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {
        name: of_bytes(tmp_path_factory.mktemp(name), template)
        for name, template in TEMPLATES.items()
    }


PIECES = [
    *SPECIAL,
    "<tool_call>",
    "<|im_",
    "end|>",
    "<|",
    "\n",
    " ",
    "Title",
    "\u00e9",
    "\U000f0000",
]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(PIECES)), st.lists(st.sampled_from(PIECES)))
def test_no_words_become_control_tokens(tokenizers, name, system, user):
    """The control tokens are those of the template, and the words are all there, as letters."""
    tokenizer = tokenizers[name]
    # Letters around them, as templates trim words. Markers of transformers are dropped from them.
    said = Prompt(*("x" + "".join(words) + "x" for words in (system, user)))
    plain, found = local_decoder.tokenize(tokenizer, [Prompt("x", "x"), said])
    control = set(tokenizer.convert_tokens_to_ids(SPECIAL))
    if "<tool_call>" in (TEMPLATES[name] or ""):  # elsewhere it is a word like others
        control.add(tokenizer.convert_tokens_to_ids("<tool_call>"))
    assert min(control) >= 256
    assert [k for k in found if k in control] == [k for k in plain if k in control]
    turns = [{"role": "system", "content": said.system}, {"role": "user", "content": said.user}]
    text = f"<s>{said.system}\n\n{said.user}\n\n"
    if TEMPLATES[name]:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    dropped = "\U000f0000" if TEMPLATES[name] else ""
    assert tokenizer.decode(found) == text.replace(dropped, "")


def test_words_that_a_tokenizer_turns_into_control_tokens_are_refused(tokenizer_of):
    """Such as letters of full width, where the tokenizer replaces them before it looks."""
    said = [Prompt("a", "A film \uff1c|im_end|\uff1e")]
    tokenizer = tokenizer_of(CHATML, normalizers.NFKC(), normalized=True)
    with pytest.raises(DataError, match=r"become control tokens .*<\|im_end\|>.*another decoder"):
        local_decoder.tokenize(tokenizer, said)
    tokenizer = tokenizer_of(None, normalizers.NFKC(), normalized=True)
    (ids,) = local_decoder.tokenize(tokenizer, said)
    assert [k for k in ids if k >= 256] == ids[:1]


def test_a_template_does_not_know_what_day_it_is(tokenizer_of):
    dated = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}"
    )
    tokenizer = tokenizer_of(dated + "{{ date_string }}")
    assert tokenizer.decode(local_decoder.tokenize(tokenizer, [Prompt("", "")])[0]) == "26 Jul 2024"


def test_a_template_that_fails_is_refused(tokenizer_of):
    tokenizer = tokenizer_of("{{ raise_exception('no system role') }}")
    with pytest.raises(DataError, match=r"its chat template cannot be applied \(no system role\)"):
        local_decoder.tokenize(tokenizer, [Prompt("be short", "hello")])


def test_an_answer_is_what_the_decoder_writes(folder):
    """A prompt alone, without padding, through `generate`."""
    model = decoder.load(folder)
    (ids,) = local_decoder.tokenize(model.folder.tokenizer(len(WORDS)), ASKED[1:2])
    new = generate(model, np.array([ids]), max_new=16).tokens[0]
    text = " ".join(word for k in new if k >= 0 and (word := WORDS[k]) not in WORDS[-2:])
    assert local_decoder.local(folder)(ASKED[1:2])[0].text == text


def test_settings_that_cannot_work_are_refused(folder, tmp_path):
    with pytest.raises(SettingError, match=f"model = '{tmp_path}'.*config.json"):
        local_decoder.local(tmp_path)
    with pytest.raises(SettingError, match="concurrency = 0"):
        local_decoder.local(folder, batch=0)
    assert local_decoder.local(folder)([]) == []
