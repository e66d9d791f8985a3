"""What the server of RQFedRec knows, what it sends, and what a client keeps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxrec.federated.private_mean import Bounds
from jaxrec.methods.rqfedrec.codes import Codes
from jaxrec.ops import quantize
from jaxrec.ops.fold_in import Curvature


class Shared(NamedTuple):
    round: jax.Array  # int32 []
    codes: Codes
    codebooks: jax.Array  # f32 [P, K, D]
    start: jax.Array  # f32 [P, K, D]  as served, when the codes were made
    context: jax.Array  # f32 [P, K, D]  what items say of those chosen next; [0, K, D] without
    gates: jax.Array  # f32 [channels]
    moments: Any  # the server optimiser's, of codebooks, gates and context
    text: jax.Array  # f32 [I, T]  the items' text vectors, of one length
    popularity: jax.Array  # f32 [I]  centred log counts, of which recent rows count most
    counts: jax.Array  # f32 [I]  train interactions
    anchors: jax.Array  # int32 [A]  items drawn by popularity
    bounds: Bounds | None  # what uploads are measured with


class State(NamedTuple):
    shared: Shared
    user: tuple[jax.Array, ...]  # a bucket: f32 [C, U, D + T + 1], the last weighs popularity
    error: tuple[jax.Array, ...]  # a bucket: what sign rounded off of uploads; else [C, 0]


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction of the fitted users, before the round
    gates: jax.Array  # [channels]
    codes: quantize.Diagnostics
    participants: jax.Array  # clients whose upload arrived
    non_finite: jax.Array  # those of them that were dropped: some number was not finite
    refreshed: jax.Array  # clients that took part in a refresh


class Broadcast(NamedTuple):
    """What a client downloads, and what follows from it for everybody who knows the codes."""

    codebooks: jax.Array  # f32 [P, K, D]  gated
    context: jax.Array  # f32 [P, K, D] or [0, K, D]
    curvature: Curvature
