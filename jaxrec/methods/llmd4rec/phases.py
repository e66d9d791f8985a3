"""Who learns when: C alone, L beside C, C beside L, or nobody; and the state that they leave."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.data.pack import history_of
from jaxrec.data.rows import Rows
from jaxrec.methods import sequential
from jaxrec.methods.llmd4rec import language
from jaxrec.methods.llmd4rec.config import Config
from jaxrec.methods.llmd4rec.epoch import (
    Layout,
    Metrics,
    Recommender,
    Teacher,
    train_epoch,
    vectors_of_rows,
    weights_of_rows,
)
from jaxrec.methods.llmd4rec.language import Language
from jaxrec.models.sequential import dropout
from jaxrec.types import Data, DataError, History, Method, Sizes

PRETRAIN, DOWN, UP, IDLE = range(4)  # of Metrics.phase


class State(NamedTuple):
    """All but `epoch` and `crm` is None where L has no part; see `Config.mode`."""

    epoch: jax.Array  # int32 []  taken so far
    crm: sequential.State
    llm: Any  # Language
    moments: Any  # AdamW's, of `llm`
    layers: Any  # nnx.State of L's layers, None where all of it is trained
    injected: Any  # f32 [I, D]  C's item table as L reads it
    teacher: Any  # f32 [R, max(D, D')]  after each row of the history; 0 behind D
    weight: Any  # f32 [R]  of the rows, where they hold for a phase


class Fixed(NamedTuple):
    """The parts of the method that no step changes."""

    config: Config
    sizes: Sizes
    layout: Layout
    alone: Method  # C without L: `sequential`
    crm: Recommender
    crm_up: Recommender  # C with the dropout of an up step
    backbone: Any  # Backbone, None where L has no part
    optimizer: optax.GradientTransformation  # of L


def pretrain(fixed: Fixed, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """An epoch of C alone, that of `sequential` to the bit."""
    learnt, metrics = fixed.alone.step(state.crm, data, key)
    return state._replace(crm=learnt), _untaught(PRETRAIN, metrics.loss)


def idle(fixed: Fixed, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """Nothing: all loops are over."""
    del fixed, data, key
    return state, _untaught(IDLE, jnp.float32(0))


def learn_down(
    fixed: Fixed, state: State, data: Data, key: jax.Array, *, begins: jax.Array
) -> tuple[State, Metrics]:
    """An epoch of L beside C. Where the phase `begins`, C's item table is injected anew."""
    config, past, known = fixed.config, history_of(data), state.crm.params

    def begin(state: State) -> State:
        newest = fixed.crm.table(known)
        if config.inject == "fixed":
            newest = jnp.where(state.epoch == config.pretrain, newest, state.injected)
        state = state._replace(injected=newest)
        if config.reset:
            state = state._replace(moments=fixed.optimizer.init(state.llm))
        if not config.share_down:
            return state
        student = language_model(fixed, state, data), state.llm
        return _with_teacher(fixed, state, student, (fixed.crm, known), past)

    state = jax.lax.cond(begins, begin, lambda state: state, state)
    teacher = None
    if config.share_down:
        own = config.share_down, config.temperature_down
        teacher = Teacher(state.teacher, fixed.crm.table(known), _weight(config, state), *own)
    student = language_model(fixed, state, data)
    llm, moments, metrics = train_epoch(
        fixed.layout, student, state.llm, state.moments, teacher, past, DOWN, key
    )
    return state._replace(llm=llm, moments=moments), metrics


def learn_up(
    fixed: Fixed, state: State, data: Data, key: jax.Array, *, begins: jax.Array
) -> tuple[State, Metrics]:
    """An epoch of C beside L, whose vectors are taken where the phase `begins`."""
    config, past = fixed.config, history_of(data)

    def begin(state: State) -> State:
        params, moments = state.crm
        if config.reset:
            moments = fixed.crm.optimizer.init(params)
        state = state._replace(crm=sequential.State(params, moments))
        if not config.share_up:
            return state
        teacher = language_model(fixed, state, data), state.llm
        return _with_teacher(fixed, state, (fixed.crm, params), teacher, past)

    state = jax.lax.cond(begins, begin, lambda state: state, state)
    teacher = None
    if config.share_up:
        own = config.share_up, config.temperature_up
        teacher = Teacher(state.teacher, state.llm.table, _weight(config, state), *own)
    params, moments = state.crm
    params, moments, metrics = train_epoch(
        fixed.layout, fixed.crm_up, params, moments, teacher, past, UP, key
    )
    return state._replace(crm=sequential.State(params, moments)), metrics


def language_model(fixed: Fixed, state: State, data: Data) -> Recommender:
    """L as it reads what is injected, and the items' texts."""
    config, backbone, words = fixed.config, fixed.backbone, item_texts(fixed.config, data)

    def hidden(llm: Language, rows: Rows, key: jax.Array | None) -> jax.Array:
        pick = lambda table: table.at[rows.item].get(mode="fill", fill_value=0)
        tokens = pick(state.injected) @ llm.read
        if words is not None:
            tokens += pick(words) @ llm.read_text
        tokens = dropout(tokens, config.llm_dropout, key, 0)
        params = language.tuned_params(config, state.layers, llm.layers)
        found = language.encode(backbone, params, tokens, rows, fixed.sizes.items)
        return dropout(found, config.llm_dropout, key, 1)

    return Recommender(hidden, lambda llm: llm.table, backbone.width, fixed.optimizer)


def item_texts(config: Config, data: Data) -> jax.Array | None:
    """The items' text vectors f32 [I, T] as L reads them, None if it does not."""
    if config.texts and data.text is None:
        raise DataError(
            "texts = True: the data carry no item text vectors for the language model to read; "
            "give the items a title, or set texts = False"
        )
    return data.text if config.texts else None


def _with_teacher(
    fixed: Fixed,
    state: State,
    student: tuple[Recommender, Any],
    teacher: tuple[Recommender, Any],
    past: History,
) -> State:
    """The state with a phase's teacher and, where they hold for the phase, KD's weights.

    `student` and `teacher` are a model and its parameters.
    """
    config, (model, known) = fixed.config, teacher
    seen = vectors_of_rows(fixed.layout, model, known, past)
    wide = jnp.pad(seen, ((0, 0), (0, state.teacher.shape[1] - seen.shape[1])))
    state = state._replace(teacher=wide)
    if config.weights != "per_round":
        return state
    learner, params = student
    own = vectors_of_rows(fixed.layout, learner, params, past), learner.table(params)
    weight = weights_of_rows(own, (seen, model.table(known)), past, config.length)
    return state._replace(weight=weight)


def _weight(config: Config, state: State) -> jax.Array | None:
    """KD's weights of the history's rows; None: by the ranks of the pass that trains."""
    if config.weights == "none":
        return jnp.ones(len(state.teacher))
    return state.weight  # None where they are `online`


def _untaught(phase: int, loss: jax.Array) -> Metrics:
    zero = jnp.float32(0)
    return Metrics(jnp.int32(phase), loss, zero, zero, zero, jnp.zeros(5))
