"""LLMD4Rec: a sequential recommender C and a language model L teach each other (arXiv 2505.18120).

    h_c = C(items),  h_l = L(W_t text(item) + W_in e(item)),  z = h E^T  over the full catalogue
    down: L learns  CE(z_l) + lambda_down KD(C -> L)     e: C's item table, injected, not trained
    up:   C learns  CE(z_c) + lambda_up KD(L -> C)

KD and its weights by the ranks of both are those of `distill.py`. C is trained alone for
`pretrain` epochs, then come `loops` of `epochs_down` and `epochs_up`. What serves costs what it
costs alone: the score of `serve = "crm"` is that of `sequential`.

Modes that are methods of their own: "none" serving C is `sequential`, "none" serving L with
`no-texts` has E4SRec's form, "crm_to_llm" and "llm_to_crm" distil one way.

A phase's teacher does not change, so its vectors after every place that is trained on are taken
once, at the phase's first epoch, and its scores made again from them.

Against the paper, which names neither T, lambda nor epochs:
- No prompt stands around L's items. An item is one token: the vector of its text beside C's.
- L reads a row that several users share in one causal pass, as C does; the paper's takes one
  sample for each place.
- L's layers are those of a pretrained sentence encoder made causal (`llm = "minilm"`), of a causal
  language model (a folder), or random, which tests the architecture and no more.
- Online weights are of the pass that trains, dropout included.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrec.data.pack import history_of
from jaxrec.methods import sequential
from jaxrec.methods.llmd4rec import language
from jaxrec.methods.llmd4rec.config import Config
from jaxrec.methods.llmd4rec.epoch import Layout, Metrics, Recommender
from jaxrec.methods.llmd4rec.phases import (
    DOWN,
    IDLE,
    PRETRAIN,
    UP,
    Fixed,
    State,
    idle,
    item_texts,
    language_model,
    learn_down,
    learn_up,
    pretrain,
)
from jaxrec.methods.sequential import Served
from jaxrec.ops.growth import over
from jaxrec.types import Data, Earlier, Method, Reads, Sizes, Traits

TRAITS = Traits(
    run={
        "rounds": 17,
        "evaluate_every": 1,
        "patience": 0,  # the model that serves stands still while the other one learns
        "baselines": ("itemknn", "popularity"),
    },
    reads=lambda config: Reads(history=True, text=config.reads_text),
    needs=("order", "text"),
    unread=lambda config: config.unread,
)
RANDOM = "random backbone: architecture test"


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`.

    Raises SettingError where the settings and L's layers do not fit, DataError where L's files
    cannot be read.
    """
    learns = config.language_learns
    fixed = Fixed(
        config,
        sizes,
        Layout(sizes.users, sizes.items, config.length, config.batch // config.length),
        sequential.make(config, sizes),
        crm_model(config, sizes.items),
        crm_model(replace(config, dropout=config.dropout_up), sizes.items),
        language.load_backbone(config, config.length) if learns else None,
        optax.adamw(config.llm_learning_rate, weight_decay=config.llm_weight_decay),
    )
    serve = partial(prepare, fixed)
    return Method(
        partial(init, fixed), partial(step, fixed), serve, sequential.score, axis="batch",
        forecast=(lambda *_: RANDOM) if config.random_language else None,
        account=partial(account, config), vectors=tuple, fold_in=serve,
        grow=partial(grow, fixed),
    )  # fmt: skip


def init(fixed: Fixed, key: jax.Array, data: Data) -> State:
    """Both models before the first epoch; DataError where the data lack what they read."""
    config, backbone, items = fixed.config, fixed.backbone, fixed.sizes.items
    crm = fixed.alone.init(key, data)
    if backbone is None:
        return State(jnp.int32(0), crm, *(None,) * 6)
    words, shape = item_texts(config, data), (items, config.width)
    llm: Any = language.initialise(config, backbone, shape, words, jax.random.fold_in(key, 1))
    widths = [config.width] * (config.share_down > 0) + [backbone.width] * (config.share_up > 0)
    places = len(history_of(data).item)
    return State(
        epoch=jnp.int32(0),
        crm=crm,
        llm=llm,
        moments=fixed.optimizer.init(llm),
        layers=None if config.tune == "full" else backbone.params,
        injected=jnp.zeros((items, config.width)),
        teacher=jnp.zeros((places, max(widths))) if widths else None,
        weight=jnp.zeros(places) if widths and config.weights == "per_round" else None,
    )


def grow(fixed: Fixed, state: State, was: Earlier, key: jax.Array, data: Data) -> State:
    """Both models' weights, new items as `init` makes them; the schedule begins again."""
    assert callable(fixed.alone.grow)
    fresh = init(fixed, key, data)._replace(crm=fixed.alone.grow(state.crm, was, key, data))
    if fixed.backbone is None:
        return fresh
    return fresh._replace(
        llm=over(fresh.llm, state.llm),
        layers=state.layers,
        injected=over(fresh.injected, state.injected),
    )


def step(fixed: Fixed, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """One epoch of the model whose turn it is."""
    config = fixed.config
    if fixed.backbone is None:
        state, metrics = pretrain(fixed, state, data, key)
    else:
        up, loop = config.language_teaches, config.epochs_down + config.epochs_up
        since = state.epoch - config.pretrain
        within = since % loop if up else since
        over = (since >= config.loops * loop) & up
        learns_up = (within >= config.epochs_down) & up
        phase = jnp.where(over, IDLE, jnp.where(learns_up, UP, DOWN))
        phase = jnp.where(since < 0, PRETRAIN, phase)
        rise = partial(learn_up, fixed, begins=within == config.epochs_down)
        branches = [
            partial(pretrain, fixed),
            partial(learn_down, fixed, begins=within == 0),
            rise if up else partial(idle, fixed),
            partial(idle, fixed),
        ]
        state, metrics = jax.lax.switch(phase, branches, state, data, key)
    # Where nobody has anything to learn from, time stands still.
    learns = jnp.any(jnp.diff(history_of(data).start) > 1)
    return state._replace(epoch=state.epoch + learns), metrics


def prepare(fixed: Fixed, state: State, data: Data) -> Served:
    """The vectors of the model that serves, of every user's newest items in `data`."""
    config, layout = fixed.config, fixed.layout
    if config.serve == "crm":
        return fixed.alone.prepare(state.crm, data)
    model = language_model(fixed, state, data)
    user = sequential.encode_users(
        lambda rows: model.hidden(state.llm, rows, None), history_of(data), model.width,
        items=layout.items, length=layout.length, batch=layout.rows,
    )  # fmt: skip
    return Served(user, state.llm.table)


def account(config: Config, state: State, last: State, data: Data) -> tuple[dict[str, int], dict]:
    """How many parameters each model has, and whether L's layers are random."""
    del last, data
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    values = {"parameters/crm": count(state.crm.params)}
    if config.language_learns:
        values["parameters/llm"] = count((state.llm, state.layers))
        values["parameters/llm trained"] = count(state.llm)
    return values | ({RANDOM: 1} if config.random_language else {}), {}


def crm_model(config: Config, items: int) -> Recommender:
    """C, as it learns beside L."""
    graphdef = sequential.graphdef_of(config, items)
    return Recommender(
        lambda params, rows, key: nnx.merge(graphdef, params)(rows.item, rows.position, key=key),
        lambda params: params["table"][...],
        config.width,
        sequential.adamw(config),
    )
