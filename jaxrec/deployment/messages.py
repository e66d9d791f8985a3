"""Messages between a coordinator and its nodes: a head of plain values, and arrays.

They travel as safetensors, which holds only numbers, so reading one runs nobody's code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jaxrec.types import DataError

FORMAT = 1  # of messages; another one is refused


class Message(NamedTuple):
    """A request of the coordinator, or a node's reply."""

    head: Mapping[str, Any]  # of strings, numbers and lists of them
    arrays: Sequence[np.ndarray] = ()


def encode(message: Message) -> bytes:
    """The message as bytes."""
    arrays = {str(n): np.array(array, order="C") for n, array in enumerate(message.arrays)}
    head = json.dumps({"format": FORMAT, **message.head})
    return save(arrays, metadata={"head": head})


def decode(data: bytes) -> Message:
    """The message that the bytes are; raises DataError where they are none."""
    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        head = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["head"])
        ordered = [arrays[str(number)] for number in range(len(arrays))]
        form = head.pop("format", None)
    except (
        SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError
    ) as error:  # fmt: skip
        raise DataError(f"a message of {len(data):,} bytes is damaged: {error}") from error
    if form != FORMAT:
        raise DataError(
            f"a message of format {form}, and this side reads format {FORMAT}: install the same "
            "version of jaxrec on the server and on all clients"
        )
    return Message(head, ordered)
