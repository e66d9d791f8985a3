"""A language model in this process: prompts answered by a decoder from a local folder."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.llm.answers import remembering
from jaxrec.llm.protocol import Answer, Complete, Keep, Prompt, Usage
from jaxrec.llm.unusable import EMPTY, cut_at, without_use
from jaxrec.types import DataError, SettingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from jaxrec.models.decoder import Decoder

# Llama 3's templates name today's date, unless told another: an answer would change by the day.
_DATE = "26 Jul 2024"
_WHOSE = "llm = 'local'"
_VERSION = 2  # of what a prompt becomes: 1 read control tokens in texts and kept cut answers


def local(
    folder: Path,
    *,
    batch: int = 16,
    temperature: float = 0.0,
    answers: Path | None = None,
    usage: Usage | None = None,
) -> Complete:
    """A function that asks the decoder in `folder` (`jaxrec.models.decoder`), in this process.

    A prompt is dressed by the tokenizer's chat template; a tokenizer without one is shown the
    system's words, an empty line and the user's. Prompts with the same limit and of similar length
    run together, with cached keys and values. A sample depends on its prompt and seed only. Words
    of a prompt are never read as control tokens, whatever they look like.

    A prompt too long for the decoder fails alone, and so does one whose answer is empty or at its
    limit before it is whole: what there is of it is neither used nor kept. `LLMError` ends the list
    if the first 8 end so.

    Args:
      folder: of a model, with config.json, model.safetensors and tokenizer.json.
      batch: prompts at once, which bounds memory.
      temperature: of sampling; 0 for the most likely answer, whatever the seed.
      answers: where answers are kept; None keeps none.
      usage: counts what is asked.

    Raises SettingError where the folder holds no model; a damaged one is found at the first call.
    """
    if batch < 1:
        raise SettingError(f"concurrency = {batch}: must be at least 1, the prompts in a batch")
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise SettingError(
            f"model = {str(folder)!r}: must be the folder of a model, with config.json"
        )
    usage = Usage() if usage is None else usage
    load = functools.cache(functools.partial(_load, folder))
    ask_all = functools.partial(_ask_all, load, batch, temperature, usage)
    # Other weights in the same place are another model.
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    about = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    identity = {"model": str(folder.resolve()), "files": about, "temperature": temperature}
    identity["version"] = _VERSION
    return remembering(ask_all, answers, identity, usage)


class _Model(NamedTuple):
    decoder: Decoder
    tokenizer: PreTrainedTokenizerFast


class _Batch(NamedTuple):
    """Prompts that run together: their places in the list, the limit and the padded length."""

    places: list[int]
    max_new: int
    width: int


def _load(folder: Path) -> _Model:
    from jaxrec.models import decoder as decoders
    from jaxrec.models.folder import Folder

    decoder = decoders.load(folder)
    tokenizer = Folder(folder, "decoder").tokenizer(decoder.config.vocabulary)
    return _Model(decoder, tokenizer)


def _ask_all(
    load: Callable[[], _Model],
    batch: int,
    temperature: float,
    usage: Usage,
    prompts: Sequence[Prompt],
    keep: Keep,
) -> list[Answer]:
    """The answers in the order of the prompts, each kept as soon as it is there."""
    if not prompts:
        return []
    model = load()
    tokens = tokenize(model.tokenizer, prompts)
    positions = model.decoder.config.positions
    found: dict[int, Answer] = {}
    fit = [k for k, ids in enumerate(tokens) if len(ids) <= positions - prompts[k].max_tokens]
    for alike in _batches(prompts, tokens, fit, positions, batch):
        seeds = [prompts[k].seed for k in alike.places]
        own = [tokens[k] for k in alike.places]
        written = _write(model.decoder, own, seeds, alike, batch, temperature)
        for k, new in zip(alike.places, written, strict=True):
            usage.prompt_tokens += len(tokens[k])
            usage.answer_tokens += len(new)
            found[k] = _answer(model.tokenizer, new, prompts[k], keep, usage)
    for k in sorted(set(range(len(prompts))) - set(fit)):
        usage.failures += 1
        room = positions - prompts[k].max_tokens
        problem = f"too long: {len(tokens[k])} tokens, and {room} have room"
        found[k] = without_use(usage, _WHOSE, problem)
    return [found[k] for k in range(len(prompts))]


def _answer(
    tokenizer: PreTrainedTokenizerFast, new: list[int], prompt: Prompt, keep: Keep, usage: Usage
) -> Answer:
    """The answer that the decoder's tokens are, kept; or why they are of no use."""
    usage.calls += 1
    if len(new) >= prompt.max_tokens:  # no stop token among them
        usage.cut += 1
        return without_use(usage, _WHOSE, cut_at(prompt.max_tokens))
    text = str(tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if not text.strip():
        usage.empty += 1
        return without_use(usage, _WHOSE, EMPTY)
    keep(prompt, text)
    return Answer(text)


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Token ids of each prompt as the model was trained to see it.

    What looks like a control token in a prompt's words, such as "<|im_end|>" in a title, is read
    as letters. Raises DataError where the folder's chat template cannot be applied, or where words
    become control tokens all the same.
    """
    dress = _bare if tokenizer.chat_template is None else _dressed
    plain, *found = dress(tokenizer, [Prompt("a", "a"), *prompts])
    added, unknown = tokenizer.added_tokens_decoder, tokenizer.unk_token_id
    control = {k: t.content for k, t in added.items() if t.special and k != unknown}
    own = [k for k in plain if k in control]
    for ids in found:
        if (seen := [k for k in ids if k in control]) != own:
            named = ", ".join(sorted({control[k] for k in seen}))
            raise DataError(
                f"{tokenizer.name_or_path}: words of a prompt become control tokens (among "
                f"{named}) however they are written; remove them from the data, or use another "
                "decoder"
            )
    return found


def _bare(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]) -> list[list[int]]:
    texts = [f"{p.system}\n\n{p.user}\n\n" for p in prompts]
    return tokenizer(texts, split_special_tokens=True)["input_ids"]


def _dressed(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Prompts in the words and control tokens of the folder's chat template.

    Control tokens are those that the folder calls special, and others that its template writes.
    """
    turns = [
        [{"role": "system", "content": p.system}, {"role": "user", "content": p.user}]
        for p in prompts
    ]
    try:
        encoded: Any = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=True, date_string=_DATE,
            sanitize_control_tokens=True,
        )  # fmt: skip
    except Exception as error:  # a template may raise whatever it likes
        raise DataError(
            f"{tokenizer.name_or_path}: its chat template cannot be applied ({error}); "
            "fetch the folder again, or use another decoder"
        ) from error
    return encoded["input_ids"]


def _batches(
    prompts: Sequence[Prompt],
    tokens: Sequence[Sequence[int]],
    fit: Sequence[int],
    positions: int,
    size: int,
) -> Iterator[_Batch]:
    """Prompts `fit` of equal limits and of lengths below one power of two, `size` at a time."""
    alike = defaultdict(list)
    for k in fit:
        room = positions - prompts[k].max_tokens
        width = min(room, 1 << max(3, (len(tokens[k]) - 1).bit_length()))
        alike[prompts[k].max_tokens, width].append(k)
    for (limit, width), places in sorted(alike.items()):
        for start in range(0, len(places), size):
            yield _Batch(places[start : start + size], limit, width)


def _write(
    decoder: Decoder,
    tokens: Sequence[Sequence[int]],
    seeds: Sequence[int],
    alike: _Batch,
    rows: int,
    temperature: float,
) -> list[list[int]]:
    """The tokens that the decoder writes after each prompt of a batch, padded to `rows`."""
    from jaxrec.models.generate import generate

    ids, mask = np.zeros((rows, alike.width), np.int32), np.zeros((rows, alike.width), bool)
    for row, own in enumerate(tokens):
        ids[row, alike.width - len(own) :] = own
        mask[row, alike.width - len(own) :] = True
    written = generate(
        decoder, jnp.asarray(ids), jnp.asarray(mask), jax.random.key(0), max_new=alike.max_new,
        temperature=temperature, rows=jnp.asarray(np.resize(seeds, rows)),
    ).tokens  # fmt: skip
    return [new[new >= 0].tolist() for new in np.asarray(written)[: len(tokens)]]
