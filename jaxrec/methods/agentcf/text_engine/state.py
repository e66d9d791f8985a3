"""State of AgentCF++'s text engine: memories as bytes, and what came of each event."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from jaxrec.methods.agentcf.text_engine.dataflow import Counts
from jaxrec.types import Text

NOT_YET, WRONG, RIGHT, GIVEN_UP = -1, 0, 1, 2  # what came of an event


class State(NamedTuple):
    """Everything that a later step reads. On the host its arrays are NumPy's, without the key."""

    private: Text  # [U, M]
    fused: Text  # [U, M]
    item: Text  # [I]
    who: jax.Array  # int32 [E]  the user of each event, in the order of time
    took: jax.Array  # int32 [E]  and the item; at test time the data's history holds more rows
    choice: jax.Array  # int8 [E]  NOT_YET, WRONG, RIGHT or GIVEN_UP
    reason: Text  # [E]  why the model chose as it did
    done: jax.Array  # int32 []  events taken, over all epochs
    counts: Counts  # int32 [] each
    key: jax.Array


class Metrics(NamedTuple):
    right: np.float32  # share of the choices
    calls: np.int32
    call_rounds: np.int32  # lists of calls that were made one after another
    unusable: np.int32  # answers that did not follow the format
    refused: np.int32  # calls without an answer, or with one that is cut, empty or filtered
    given_up: np.int32  # events that changed nothing
