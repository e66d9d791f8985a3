"""LLMD4Rec: a sequential recommender C and a language model L teach each other (arXiv 2505.18120).

    h_c = C(items),  h_l = L(W_t text(item) + W_in e(item)),  z = h E^T  over the full catalogue
    down: L learns  CE(z_l) + lambda_down KD(C -> L)     e: C's item table, injected, not trained
    up:   C learns  CE(z_c) + lambda_up KD(L -> C)

KD and its weights by the ranks of both are those of `ops/distill.py`. C is trained alone for
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

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrec.data.pack import history_of
from jaxrec.data.rows import Rows, lay, spans
from jaxrec.methods import llmd4rec_language as language
from jaxrec.methods import sequential
from jaxrec.methods.llmd4rec_language import Language, LanguageConfig
from jaxrec.methods.sequential import Served, require
from jaxrec.models.sequential import dropout
from jaxrec.ops import distill, losses
from jaxrec.types import Data, DataError, History, Method, Sizes

RUN = {
    "split": "leave-one-out",
    "rounds": 17,
    "evaluate_every": 1,
    "patience": 0,  # the model that serves stands still while the other one learns
    "baselines": ("popularity",),
}
reads_history = True
PRETRAIN, DOWN, UP, IDLE = range(4)  # of Metrics.phase
RANDOM = "random backbone: architecture test"


@dataclass(frozen=True)
class Config(LanguageConfig, sequential.Config):
    """Settings of LLMD4Rec; one round is one epoch of one of the two models.

    C's are those of `sequential`; `length` and `batch` hold for both.
    """

    mode: Literal["mutual", "crm_to_llm", "llm_to_crm", "none"] = "mutual"
    """Who learns from whom; what the model that serves does not need is left out."""
    serve: Literal["crm", "llm"] = "crm"
    """The model that scores: C or L."""
    pretrain: int = 9
    """Epochs of C alone, before all others."""
    loops: int = 1
    """Times that L and then C learn; without an up step, L learns on and on."""
    epochs_down: int = 5
    """Epochs of L in a loop."""
    epochs_up: int = 3
    """Epochs of C in a loop."""
    temperature_down: float = 2.0
    """T of the softmaxes that L learns from."""
    temperature_up: float = 1.0
    """T of the softmaxes that C learns from."""
    dropout_up: float = 0.15
    """`dropout` of C in an up step, where L's softmax keeps C from learning rows by heart."""
    lambda_down: float = 1.0
    """Factor of what L learns from C."""
    lambda_up: float = 4.0
    """Factor of what C learns from L."""
    weights: Literal["online", "per_round", "none"] = "online"
    """Weights by ranks: of the pass that trains, of the models at the start of a phase, or 1."""
    inject: Literal["update", "fixed"] = "update"
    """C's item table that L reads: the newest at each down step, or the first one."""
    reset: bool = True
    """Whether an optimizer begins anew with each phase."""


class State(NamedTuple):
    """All but `epoch` and `crm` is None where L has no part; see `Config.mode`."""

    epoch: jax.Array  # int32 []  taken so far
    crm: sequential.State
    llm: Language | None
    moments: Any  # AdamW's, of `llm`
    layers: Any  # nnx.State of L's layers, None where all of it is trained
    injected: jax.Array | None  # f32 [I, D]  C's item table as L reads it
    teacher: jax.Array | None  # f32 [R, max(D, D')]  after each row of the history; 0 behind D
    weight: jax.Array | None  # f32 [R]  of the rows, where they hold for a phase


class Metrics(NamedTuple):
    """Means over the places of the epoch; but for loss and phase 0 where nobody teaches."""

    phase: jax.Array  # int32 []  0: C alone, 1: L learns, 2: C learns, 3: neither
    loss: jax.Array  # cross-entropy of the model that learns
    distilled: jax.Array  # KD, weighted
    rank_student: jax.Array
    rank_teacher: jax.Array
    weights: jax.Array  # f32 [5]  share of the weights 0, below 1, 1, above 1, 2


class Side(NamedTuple):
    """One of the two models."""

    hidden: Callable  # (params, rows, key | None) -> f32 [B, L, D]
    table: Callable  # params -> f32 [I, D]
    width: int
    optimizer: optax.GradientTransformation


def reads_text(config: Config) -> bool:
    """Whether L reads the items' texts."""
    return config.texts and _needs(config)[0]


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    alone = sequential.make(config, sizes)
    language.check(config)
    _check(config)
    down, up = _needs(config)
    share_down = config.lambda_down * (config.mode in ("mutual", "crm_to_llm"))
    share_up = config.lambda_up * up
    backbone = language.load(config, config.length) if down else None
    rows, items = config.batch // config.length, sizes.items
    crm = _crm_side(config, items)
    crm_up = _crm_side(replace(config, dropout=config.dropout_up), items)
    optimizer = optax.adamw(config.llm_learning_rate, weight_decay=config.llm_weight_decay)

    def llm_side(state: State, data: Data) -> Side:
        """L as it reads what is injected."""
        words = _texts(config, data)

        def hidden(llm: Language, rows: Rows, key: jax.Array | None) -> jax.Array:
            pick = lambda table: table.at[rows.item].get(mode="fill", fill_value=0)
            tokens = pick(state.injected) @ llm.read
            if words is not None:
                tokens += pick(words) @ llm.read_text
            tokens = dropout(tokens, config.llm_dropout, key, 0)
            params = language.tuned(config, state.layers, llm.layers)
            found = language.read(backbone, params, tokens, rows, items)
            return dropout(found, config.llm_dropout, key, 1)

        return Side(hidden, lambda llm: llm.table, backbone.width, optimizer)

    def init(key: jax.Array, data: Data) -> State:
        first = alone.init(key, data)
        if not down:
            return State(jnp.int32(0), first, *(None,) * 6)
        words, shape = _texts(config, data), (items, config.width)
        llm = language.first(config, backbone, shape, words, jax.random.fold_in(key, 1))
        widths = [config.width] * (share_down > 0) + [backbone.width] * (share_up > 0)
        places = len(history_of(data).item)
        return State(
            jnp.int32(0),
            first,
            llm,
            optimizer.init(llm),
            None if config.tune == "full" else backbone.params,
            jnp.zeros((items, config.width)),
            jnp.zeros((places, max(widths))) if widths else None,
            jnp.zeros(places) if widths and config.weights == "per_round" else None,
        )

    def remember(side: Side, params: Any, past: History) -> jax.Array:
        """A model's vectors f32 [R, D] after each row of the history that is trained on."""
        everyone = jnp.arange(sizes.users)
        laid, used = lay(past, everyone, items=items, length=config.length, ahead=1, multiple=rows)

        def note(number, kept):
            batch = laid.batch(number, rows)
            slot = _slots(batch, past, config.length)
            return kept.at[slot].set(side.hidden(params, batch, None), mode="drop")

        start = jnp.zeros((len(past.item), side.width))
        return jax.lax.fori_loop(0, -(-used // rows), note, start)

    def taught(state: State, student, learner, teacher, known, past: History) -> State:
        """The state with a phase's teacher, and what it weighs."""
        seen = remember(teacher, known, past)
        wide = jnp.pad(seen, ((0, 0), (0, state.teacher.shape[1] - seen.shape[1])))
        state = state._replace(teacher=wide)
        if config.weights != "per_round":
            return state
        target = jnp.append(past.item[1:], 0)
        where = (
            jnp.zeros(len(target), bool).at[_trained(past, config.length)].set(True, mode="drop")
        )
        learnt = distill.learn(
            remember(student, learner, past), student.table(learner), seen, teacher.table(known),
            target, where=where,
        )  # fmt: skip
        return state._replace(weight=learnt.weight)

    def epoch(side, params, moments, state, table, share, heat, past, key):
        """One epoch of a model beside a teacher with `table`, None for nobody.

        Returns its parameters and moments and the metrics but for the phase.
        """
        order_key, key = jax.random.split(key)
        order = jax.random.permutation(order_key, sizes.users)
        laid, used = lay(past, order, items=items, length=config.length, ahead=1, multiple=rows)

        def loss(params, batch: Rows, key):
            drop_key, _ = jax.random.split(key)  # as `sequential` draws
            hidden = side.hidden(params, batch, drop_key).reshape(-1, side.width)
            target, where = batch.target.ravel(), batch.item.ravel() < items
            number = jnp.maximum(jnp.sum(where), 1)
            if table is None:
                total = losses.next_item(hidden, side.table(params), target, where=where)
                return total / number, jnp.append(total, jnp.zeros(8))
            slot = _slots(batch, past, config.length).ravel()
            pick = lambda array: array.at[slot].get(mode="fill", fill_value=0)
            given = {"online": lambda: None, "per_round": lambda: pick(state.weight)}
            weight = given.get(config.weights, lambda: jnp.ones(len(slot)))()
            learnt = distill.learn(
                hidden, side.table(params), pick(state.teacher)[:, : table.shape[1]], table,
                target, where=where, weight=weight, share=share, temperature=heat,
            )  # fmt: skip
            w = learnt.weight[:, None]
            inner = (w > 0) & (w < 2)
            kinds = [w <= 0, inner & (w < 1), w == 1, inner & (w > 1), w >= 2]
            sums = (
                learnt.cross, learnt.distilled, learnt.student.sum(), learnt.teacher.sum(),
                *jnp.sum(jnp.concatenate(kinds, 1) & where[:, None], axis=0),
            )  # fmt: skip
            return learnt.loss / number, jnp.stack([jnp.float32(each) for each in sums])

        def advance(number, carry):
            params, moments, sums, count = carry
            batch, batch_key = laid.batch(number, rows), jax.random.fold_in(key, number)
            gradient, part = jax.grad(loss, has_aux=True)(params, batch, batch_key)
            updates, moments = side.optimizer.update(gradient, moments, params)
            count += jnp.sum(batch.item < items)
            return optax.apply_updates(params, updates), moments, sums + part, count

        start = params, moments, jnp.zeros(9), jnp.int32(0)
        params, moments, sums, count = jax.lax.fori_loop(0, -(-used // rows), advance, start)
        means = sums / jnp.maximum(count, 1)
        return params, moments, (*means[:4], means[4:])

    def pretraining(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        learnt, metrics = alone.step(state.crm, data, key)
        zero = jnp.float32(0)
        metrics = Metrics(jnp.int32(PRETRAIN), metrics.loss, zero, zero, zero, jnp.zeros(5))
        return state._replace(crm=learnt), metrics

    def idle(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        zero = jnp.float32(0)
        return state, Metrics(jnp.int32(IDLE), zero, zero, zero, zero, jnp.zeros(5))

    def learn_down(state: State, data: Data, key: jax.Array, first) -> tuple[State, Metrics]:
        past, known = history_of(data), state.crm.params

        def begin(state: State) -> State:
            newest = crm.table(known)
            if config.inject == "fixed":
                newest = jnp.where(state.epoch == config.pretrain, newest, state.injected)
            state = state._replace(injected=newest)
            if config.reset:
                state = state._replace(moments=optimizer.init(state.llm))
            if not share_down:
                return state
            return taught(state, llm_side(state, data), state.llm, crm, known, past)

        state = jax.lax.cond(first, begin, lambda state: state, state)
        table = crm.table(known) if share_down else None
        llm, moments, means = epoch(
            llm_side(state, data), state.llm, state.moments, state, table,
            share_down, config.temperature_down, past, key,
        )  # fmt: skip
        return state._replace(llm=llm, moments=moments), Metrics(jnp.int32(DOWN), *means)

    def learn_up(state: State, data: Data, key: jax.Array, first) -> tuple[State, Metrics]:
        past = history_of(data)

        def begin(state: State) -> State:
            params, moments = state.crm
            if config.reset:
                moments = crm.optimizer.init(params)
            state = state._replace(crm=sequential.State(params, moments))
            if not share_up:
                return state
            return taught(state, crm, params, llm_side(state, data), state.llm, past)

        state = jax.lax.cond(first, begin, lambda state: state, state)
        table = state.llm.table if share_up else None
        *learnt, means = epoch(
            crm_up, *state.crm, state, table, share_up, config.temperature_up, past, key
        )
        return state._replace(crm=sequential.State(*learnt)), Metrics(jnp.int32(UP), *means)

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        if not down:
            state, metrics = pretraining(state, data, key)
        else:
            loop = config.epochs_down + config.epochs_up
            since = state.epoch - config.pretrain
            within = since % loop if up else since
            over = (since >= config.loops * loop) & up
            learns_up = (within >= config.epochs_down) & up
            phase = jnp.where(over, IDLE, jnp.where(learns_up, UP, DOWN))
            phase = jnp.where(since < 0, PRETRAIN, phase)
            branches = [
                pretraining,
                partial(learn_down, first=within == 0),
                partial(learn_up, first=within == config.epochs_down) if up else idle,
                idle,
            ]
            state, metrics = jax.lax.switch(phase, branches, state, data, key)
        # Where nobody has anything to learn from, time stands still.
        learns = jnp.any(jnp.diff(history_of(data).start) > 1)
        return state._replace(epoch=state.epoch + learns), metrics

    def prepare(state: State, data: Data) -> Served:
        if config.serve == "crm":
            return alone.prepare(state.crm, data)
        hidden = lambda rows: llm_side(state, data).hidden(state.llm, rows, None)
        past, length = history_of(data), config.length
        user = sequential.encode(
            hidden, past, backbone.width, items=items, length=length, batch=rows
        )
        return Served(user, state.llm.table)

    def account(state: State, last: State, data: Data) -> tuple[dict[str, int], dict]:
        del last, data
        count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
        values = {"parameters/crm": count(state.crm.params)}
        if down:
            values["parameters/llm"] = count((state.llm, state.layers))
            values["parameters/llm trained"] = count(state.llm)
        return values | _label(config), {}

    label = _label(config) if down else {}
    forecast = (lambda *_: RANDOM) if label else None
    return Method(
        init, step, prepare, alone.score, axis="batch", forecast=forecast, account=account,
        vectors=tuple, fold_in=prepare,
    )  # fmt: skip


def _crm_side(config: Config, items: int) -> Side:
    graph = nnx.graphdef(jax.eval_shape(lambda: sequential.build(jax.random.key(0), config, items)))
    return Side(
        lambda params, rows, key: nnx.merge(graph, params)(rows.item, rows.position, key=key),
        lambda params: params["table"][...],
        config.width,
        sequential.adamw(config),
    )


def _needs(config: Config) -> tuple[bool, bool]:
    """Whether L learns and whether C learns from it, for the sake of what serves."""
    up = config.mode in ("mutual", "llm_to_crm")
    return up or config.serve == "llm", up


def _label(config: Config) -> dict[str, int]:
    return {RANDOM: 1} if config.llm == "random" and _needs(config)[0] else {}


def _texts(config: Config, data: Data) -> jax.Array | None:
    """The items' text vectors f32 [I, T] as L reads them, None if it does not."""
    if config.texts and data.text is None:
        raise DataError(
            "texts = True: the data carry no item text vectors for the language model to read; "
            "give the items a title, or set texts = False"
        )
    return data.text if config.texts else None


def _trained(past: History, length: int) -> jax.Array:
    """The rows of the history that are trained on, int32 [R]; R for the others."""
    at = jnp.arange(len(past.item))
    first, _ = spans(past, length, ahead=1)
    within = at - first[past.user]
    final = past.start[1:][past.user] - 1  # the user's newest, which has no next one
    return jnp.where((within >= 0) & (at < final), at, len(past.item))


def _slots(rows: Rows, past: History, length: int) -> jax.Array:
    """int32 [B, L], the row of the history that a place is; R for padding."""
    first, _ = spans(past, length, ahead=1)
    return first.at[rows.user].get(mode="fill", fill_value=len(past.item)) + rows.position


def _check(config: Config) -> None:
    require(config.pretrain >= 0, config, "pretrain", "at least 0")
    for name in ("loops", "epochs_down", "epochs_up"):
        require(getattr(config, name) >= 1, config, name, "at least 1")
    for name in ("temperature_down", "temperature_up"):
        require(0 < getattr(config, name) < math.inf, config, name, "above 0")
    for name in ("lambda_down", "lambda_up"):
        require(0 <= getattr(config, name) < math.inf, config, name, "at least 0")
    require(0 <= config.dropout_up < 1, config, "dropout_up", "from 0 to below 1")
    if _needs(config)[1]:
        rule = "softmax, beside which C learns from L; or set mode to crm_to_llm or none"
        require(config.loss == "softmax", config, "loss", rule)
