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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrec.data import text
from jaxrec.data.rows import Rows, lay
from jaxrec.methods import sequential
from jaxrec.methods.sequential import Served, history
from jaxrec.models import decoder, encoder, lora
from jaxrec.models.sequential import dropout
from jaxrec.ops import distill, losses
from jaxrec.types import Data, DataError, History, Method, SettingError, Sizes

RUN = {
    "split": "leave-one-out",
    "rounds": 24,
    "evaluate_every": 1,
    "patience": 0,  # the model that serves stands still while the other one learns
    "baselines": ("popularity",),
}
PRETRAIN, DOWN, UP, IDLE = range(4)  # of Metrics.phase
RANDOM = "random backbone: architecture test"


@dataclass(frozen=True)
class Config(sequential.Config):
    """Settings of LLMD4Rec; one round is one epoch of one of the two models.

    C's are those of `sequential`; `length` and `batch` hold for both.
    """

    mode: Literal["mutual", "crm_to_llm", "llm_to_crm", "none"] = "mutual"
    """Who learns from whom; what the model that serves does not need is left out."""
    serve: Literal["crm", "llm"] = "crm"
    """The model that scores: C or L."""
    pretrain: int = 9
    """Epochs of C alone, before all others."""
    loops: int = 3
    """Times that L and then C learn; without an up step, L learns on and on."""
    epochs_down: int = 3
    """Epochs of L in a loop."""
    epochs_up: int = 2
    """Epochs of C in a loop."""
    temperature_down: float = 2.0
    """T of the softmaxes that L learns from."""
    temperature_up: float = 2.0
    """T of the softmaxes that C learns from."""
    lambda_down: float = 1.0
    """Factor of what L learns from C."""
    lambda_up: float = 1.0
    """Factor of what C learns from L."""
    weights: Literal["online", "per_round", "none"] = "online"
    """Weights by ranks: of the pass that trains, of the models at the start of a phase, or 1."""
    inject: Literal["update", "fixed"] = "update"
    """C's item table that L reads: the newest at each down step, or the first one."""
    reset: bool = True
    """Whether an optimizer begins anew with each phase."""
    llm: str = "minilm"
    """L's layers: minilm, the folder of a causal language model, or random (tests only)."""
    llm_layers: int = 2
    """Of an encoder: the first so many; 0: all."""
    llm_width: int = 64
    """Width of random layers; others have their own."""
    tune: Literal["lora", "full", "frozen"] = "lora"
    """What is trained of L's layers: low-rank pairs beside them, all, or nothing."""
    lora_rank: int = 16
    """Rank of the pairs."""
    lora_alpha: float = 16.0
    """Scale of the pairs, in ranks."""
    texts: bool = True
    """Whether L reads item texts beside C's vectors, and its output table begins as they are."""
    llm_dropout: float = 0.2
    """Share of L's inputs and outputs set to 0 while training, 0 to below 1."""
    llm_learning_rate: float = 1e-3
    """Of L's AdamW."""
    llm_weight_decay: float = 0.0
    """Of L's AdamW, decoupled."""


class Language(NamedTuple):
    """What is trained of L."""

    read: jax.Array  # f32 [D, D']  W_in, from C's width to L's
    read_text: jax.Array | None  # f32 [T, D']  W_t
    table: jax.Array  # f32 [I, D']  W_out
    layers: Any  # nnx.State, LoRA, or None where they are frozen


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


class Backbone(NamedTuple):
    graphdef: nnx.GraphDef
    params: nnx.State
    width: int


def reads_text(config: Config) -> bool:
    """Whether L reads the items' texts."""
    return config.texts and _needs(config)[0]


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    alone = sequential.make(config, sizes)
    _check(config)
    down, up = _needs(config)
    share_down = config.lambda_down * (config.mode in ("mutual", "crm_to_llm"))
    share_up = config.lambda_up * up
    backbone = _backbone(config) if down else None
    rows, items = config.batch // config.length, sizes.items
    crm_graph = nnx.graphdef(
        jax.eval_shape(lambda: sequential.build(jax.random.key(0), config, items))
    )
    crm = Side(
        lambda params, rows, key: nnx.merge(crm_graph, params)(rows.item, rows.position, key=key),
        lambda params: params["table"][...],
        config.width,
        sequential.adamw(config),
    )
    optimizer = optax.adamw(config.llm_learning_rate, weight_decay=config.llm_weight_decay)

    def language(state: State, data: Data) -> Side:
        """L as it reads what is injected."""
        words = _texts(config, data)

        def hidden(llm: Language, rows: Rows, key: jax.Array | None) -> jax.Array:
            pick = lambda table: table.at[rows.item].get(mode="fill", fill_value=0)
            tokens = pick(state.injected) @ llm.read
            if words is not None:
                tokens += pick(words) @ llm.read_text
            tokens = dropout(tokens, config.llm_dropout, key, 0)
            found = _run(backbone, _tuned(config, state.layers, llm.layers), tokens, rows, items)
            return dropout(found, config.llm_dropout, key, 1)

        return Side(hidden, lambda llm: llm.table, backbone.width, optimizer)

    def init(key: jax.Array, data: Data) -> State:
        first = alone.init(key, data)
        if not down:
            return State(jnp.int32(0), first, *(None,) * 6)
        llm = _language(config, backbone, items, _texts(config, data), jax.random.fold_in(key, 1))
        widths = [config.width] * (share_down > 0) + [backbone.width] * (share_up > 0)
        places = len(history(data).item)
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
                hidden, side.table(params), pick(state.teacher[:, : table.shape[1]]), table,
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
        past, known = history(data), state.crm.params

        def begin(state: State) -> State:
            newest = crm.table(known)
            if config.inject == "fixed":
                newest = jnp.where(state.epoch == config.pretrain, newest, state.injected)
            state = state._replace(injected=newest)
            if config.reset:
                state = state._replace(moments=optimizer.init(state.llm))
            if not share_down:
                return state
            return taught(state, language(state, data), state.llm, crm, known, past)

        state = jax.lax.cond(first, begin, lambda state: state, state)
        table = crm.table(known) if share_down else None
        llm, moments, means = epoch(
            language(state, data), state.llm, state.moments, state, table,
            share_down, config.temperature_down, past, key,
        )  # fmt: skip
        return state._replace(llm=llm, moments=moments), Metrics(jnp.int32(DOWN), *means)

    def learn_up(state: State, data: Data, key: jax.Array, first) -> tuple[State, Metrics]:
        past = history(data)

        def begin(state: State) -> State:
            params, moments = state.crm
            if config.reset:
                moments = crm.optimizer.init(params)
            state = state._replace(crm=sequential.State(params, moments))
            if not share_up:
                return state
            return taught(state, crm, params, language(state, data), state.llm, past)

        state = jax.lax.cond(first, begin, lambda state: state, state)
        table = state.llm.table if share_up else None
        *learnt, means = epoch(
            crm, *state.crm, state, table, share_up, config.temperature_up, past, key
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
        learns = jnp.any(jnp.diff(history(data).start) > 1)
        return state._replace(epoch=state.epoch + learns), metrics

    def prepare(state: State, data: Data) -> Served:
        if config.serve == "crm":
            return alone.prepare(state.crm, data)
        hidden = lambda rows: language(state, data).hidden(state.llm, rows, None)
        past, length = history(data), config.length
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
    return Method(init, step, prepare, alone.score, forecast=forecast, account=account)


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
    within = at - _first(past, length)[past.user]
    final = past.start[1:][past.user] - 1  # the user's newest, which has no next one
    return jnp.where((within >= 0) & (at < final), at, len(past.item))


def _first(past: History, length: int) -> jax.Array:
    """int32 [U], the row of the history that a user's sequence begins with."""
    counts = jnp.clip(jnp.diff(past.start) - 1, 0, length)
    return past.start[1:] - 1 - counts


def _slots(rows: Rows, past: History, length: int) -> jax.Array:
    """int32 [B, L], the row of the history that a place is; R for padding."""
    first = _first(past, length).at[rows.user].get(mode="fill", fill_value=len(past.item))
    return first + rows.position


def _backbone(config: Config) -> Backbone:
    """L's layers, without the tables of words that it does not read."""
    if config.llm in ("minilm", "random"):
        if config.llm == "random":
            width = config.llm_width
            found = encoder.Config(
                vocabulary=1, width=width, layers=config.llm_layers or 2,
                heads=math.gcd(width, 4), inner=4 * width, positions=config.length, types=1,
                epsilon=1e-12, activation="gelu", max_tokens=config.length,
            )  # fmt: skip
            module = encoder.random(found, jax.random.key(0))
        else:
            loaded = encoder.load(text.minilm())
            module, found = nnx.merge(loaded.graphdef, loaded.params), loaded.config
        _require(config.llm_layers <= found.layers, config, "llm_layers", f"{found.layers} at most")
        _require(config.length <= found.positions, config, "length", f"{found.positions} at most")
        module.layers = nnx.List(list(module.layers)[: config.llm_layers or None])
        module.word = nnx.Param(module.word[:1])
        width = found.width
    else:
        folder = Path(config.llm).expanduser()
        if not folder.is_dir():
            raise SettingError(
                f"llm = {config.llm!r}: no such folder; use minilm, random, or the folder of a "
                "causal language model with config.json and model.safetensors"
            )
        loaded = decoder.load(folder, jnp.float32)
        module, width = nnx.merge(loaded.graphdef, loaded.params), loaded.config.width
        module.embedding, module.head = nnx.Param(module.embedding[:1]), None
    return Backbone(*nnx.split(module), width)


def _language(
    config: Config, backbone: Backbone, items: int, words: jax.Array | None, key: jax.Array
) -> Language:
    """L before the first epoch."""
    keys = jax.random.split(key, 4)
    glorot = jax.nn.initializers.glorot_uniform()
    width = backbone.width
    read_text, table = None, 0.02 * jax.random.normal(keys[1], (items, width))
    if words is not None:
        read_text = glorot(keys[2], (words.shape[1], width))
        turn = jax.random.normal(keys[1], (words.shape[1], width)) * width**-0.5
        table = words if words.shape[1] == width else words @ turn
    names = ("query", "value", "up", "gate", "down")
    layers = None
    if config.tune == "full":
        layers = backbone.params
    elif config.tune == "lora":
        known = {str(path[-2]) for path, _ in nnx.to_flat_state(backbone.params) if len(path) > 1}
        chosen = [name for name in names if name in known]
        layers = lora.init(backbone.params, chosen, config.lora_rank, keys[3])
    return Language(glorot(keys[0], (config.width, width)), read_text, table, layers)


def _tuned(config: Config, frozen: nnx.State | None, layers: Any) -> nnx.State:
    """The parameters of L's layers with what is trained of them."""
    if config.tune == "lora":
        return lora.apply(frozen, layers, config.lora_alpha)
    return layers if config.tune == "full" else frozen


def _run(
    backbone: Backbone, params: nnx.State, tokens: jax.Array, rows: Rows, items: int
) -> jax.Array:
    """L's vectors f32 [B, L, D] after each of `tokens` [B, L, D]; 0 for padding."""
    module, real = nnx.merge(backbone.graphdef, params), rows.item < items
    if isinstance(module, decoder.Llama):
        found = module(tokens, real, position=rows.position)
    else:
        sequence = jnp.cumsum(rows.position == 0, axis=1)
        same = sequence[:, :, None] == sequence[:, None]
        seen = jnp.tril(jnp.ones(same.shape[1:], bool)) & same & real[:, None]
        found = module.read(tokens, module.position[...][rows.position], seen)
    return jnp.where(real[..., None], found, 0)


def _check(config: Config) -> None:
    for name in ("pretrain", "llm_layers"):
        _require(getattr(config, name) >= 0, config, name, "at least 0")
    for name in ("loops", "epochs_down", "epochs_up", "llm_width", "lora_rank"):
        _require(getattr(config, name) >= 1, config, name, "at least 1")
    for name in ("temperature_down", "temperature_up", "llm_learning_rate", "lora_alpha"):
        _require(0 < getattr(config, name) < math.inf, config, name, "above 0")
    for name in ("lambda_down", "lambda_up", "llm_weight_decay"):
        _require(0 <= getattr(config, name) < math.inf, config, name, "at least 0")
    _require(0 <= config.llm_dropout < 1, config, "llm_dropout", "from 0 to below 1")
    if _needs(config)[1]:
        rule = "softmax, beside which C learns from L; or set mode to crm_to_llm or none"
        _require(config.loss == "softmax", config, "loss", rule)


def _require(holds: bool, config: Config, name: str, rule: str) -> None:
    if not holds:
        raise SettingError(f"{name} = {getattr(config, name)!r}: must be {rule}")
