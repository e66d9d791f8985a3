"""A method's scores into metrics, on the device, block by block in one compiled program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxrec.evaluation.names import sampled
from jaxrec.evaluation.plan import Bucket, Plan
from jaxrec.mesh import by_rows, divide, on_host, within
from jaxrec.ops import ranking
from jaxrec.types import Method, SettingError


class Evaluation(NamedTuple):
    """Metrics, from 0 to 1 and the higher the better, and the values that they are means of.

    "NDCG@10/se" is the standard error of "NDCG@10" over the lines. "F1@k" is the F1 of the averaged
    precision and recall, "meanF1@k" the mean of the lines' F1.
    """

    means: dict[str, float]  # by name
    per_user: pd.DataFrame  # user (and item, where rows are ranked), then one column a metric


def evaluator(
    method: Method, plan: Plan, *, lists: bool = True, devices: Mesh | None = None
) -> Callable[[Any, Any], Evaluation]:
    """A function (state, data) -> Evaluation, compiled at its first call and never again.

    Args:
      method: its `prepare` runs once a call, its `score` once a block; or its `rank`, if it has
        one, once for the candidates of all lines.
      plan: from `make_plan`.
      lists: in full ranking, also make top-k lists for coverage@k and Gini@k.
      devices: each ranks its part of the lines of a block; `multiple` of the plan is their number.

    The function raises FloatingPointError for a score that is NaN or +inf; it names the first user.
    A method that ranks candidates raises SettingError for a plan that has no such lists.
    """
    if method.rank:
        measure = _list_ranker(method.prepare, method.rank, plan)
    else:
        measure = jax.jit(partial(_measure, method, plan, lists and not plan.candidates))

    def evaluate(state: Any, data: Any) -> Evaluation:
        with within(devices):
            values, exposure = on_host(measure(state, data, plan.buckets))
        return _summary(plan, values, exposure)

    return evaluate


def names_of_lines(ks: Sequence[int]) -> list[str]:
    """The metrics of a line as `Evaluation.per_user` names them: "meanF1@k" is a line's own F1."""
    return [name.replace("F1@", "meanF1@") for name in _metric_names(ks)]


def _metric_names(ks: Sequence[int]) -> list[str]:
    """The metrics of a line, in the order of the columns that are measured."""
    return [*(f"{name}@{k}" for name in ranking.AT_K for k in ks), "MRR"]


def _measure(
    method: Method, plan: Plan, lists: bool, state: Any, data: Any, buckets: Sequence[Bucket]
) -> tuple[jax.Array, jax.Array | None]:
    """Whether each line's scores are broken, then its metrics: f32 [lines, 1 + metrics].

    With `lists`, also coverage and Gini of the top-k lists at each of the plan's ks: f32 [K, 2].
    """
    rank = partial(_rank_block, method, plan, lists, method.prepare(state, data))
    blocks = [jax.lax.map(rank, bucket) for bucket in buckets]
    by_line = lambda *each: jnp.concatenate([x.reshape(-1, *x.shape[2:]) for x in each])
    broken, places, shown = jax.tree.map(by_line, *blocks)  # [lines, ...]
    values = ranking.metrics(places, plan.ks)
    table = jnp.stack([broken, *(values[name] for name in _metric_names(plan.ks))], axis=-1)
    if not lists:
        return table, None
    shown = jnp.where(places.number[:, None] > 0, shown, plan.items)
    counts = ranking.exposure(shown, plan.items, plan.ks)
    return table, jnp.stack([ranking.coverage(counts), ranking.gini(counts)], axis=-1)


def _rank_block(
    method: Method, plan: Plan, lists: bool, served: Any, block: Bucket
) -> tuple[jax.Array, ranking.Places, jax.Array | None]:
    """Of a block's lines [B]: whether scores are broken, the targets' places, the top-k lists."""
    longest = max(plan.ks)
    block = block._replace(users=divide(block.users), targets=divide(block.targets))
    scores = divide(method.score(served, block.users).astype(jnp.float32))  # [B, I]
    broken = ~(jnp.max(scores, axis=-1) < jnp.inf)  # max hands NaN on
    listed = divide(jnp.zeros(scores.shape, bool))
    listed = listed.at[block.row, block.item].set(True, mode="drop")
    excluded = ~listed if plan.candidates else listed
    if plan.domain is not None:
        domain = jnp.asarray(plan.domain)
        excluded |= domain != domain[block.targets[:, :1]]
    mask = block.targets < plan.items
    places = ranking.places(ranking.ranks(scores, block.targets, mask, excluded), longest)
    best = partial(ranking.top, k=longest)
    return broken, places, by_rows(best, scores, excluded) if lists else None


def _list_ranker(prepare: Callable, rank: Callable, plan: Plan) -> Callable:
    """As `_measure`, for a method that ranks lists: each line's target and its rivals."""
    if not plan.candidates or "item" not in plan.lines:
        raise SettingError(
            f"candidates = {plan.candidates}: this method ranks short lists with one item to find, "
            "not the full catalogue; set candidates, such as 9, and ranking = 'rows' or 'domains'"
        )
    real = plan.lines["user"].to_numpy() >= 0
    users, target = (plan.lines[name].to_numpy()[real] for name in ("user", "item"))
    lists = _lists_to_rank(plan)
    is_target = lists == target[:, None]
    names = _metric_names(plan.ks)

    @jax.jit
    def metrics(ranks: jax.Array) -> jax.Array:
        values = ranking.metrics(ranking.places(ranks[:, None], max(plan.ks)), plan.ks)
        return jnp.stack([values[name] for name in names], axis=-1)

    def measure(state: Any, data: Any, buckets: Sequence[Bucket]) -> tuple[np.ndarray, None]:
        del buckets  # their lists are what is ranked
        scores = np.asarray(rank(prepare(state, data), users, lists))
        broken = ~(scores.max(1) < np.inf)
        ranks = (scores >= scores[is_target][:, None]).sum(1)  # the target is one of them
        table = np.zeros((len(real), 1 + len(names)), np.float32)
        table[real] = np.column_stack([broken, metrics(ranks)])
        return table, None

    return measure


def _lists_to_rank(plan: Plan) -> np.ndarray:
    """The target and the negatives of each real line, in the order of the ids: int32 [lines, S]."""
    found = []
    for bucket in plan.buckets:
        for block in zip(*map(np.asarray, bucket), strict=True):
            _, targets, row, item = block
            real = targets[:, 0] < plan.items
            rivals = item[np.argsort(row, kind="stable")][: real.sum() * plan.candidates]
            each = np.column_stack([targets[real, 0], rivals.reshape(-1, plan.candidates)])
            found.append(np.sort(each, axis=1))  # the target's place tells nothing
    return np.concatenate(found)


def _summary(plan: Plan, values: np.ndarray, exposure: np.ndarray | None) -> Evaluation:
    """What was measured of the plan's lines, by name, and its means."""
    real = plan.lines["user"].to_numpy() >= 0
    values, lines = values[real], plan.lines.loc[real].reset_index(drop=True)
    users = lines["user"].to_numpy()
    if (broken := values[:, 0] > 0).any():
        raise FloatingPointError(
            f"scores of user {users[broken].min()} hold NaN or +inf, as do those of "
            f"{broken.sum():,} of {len(users):,} users: lower the learning rate"
        )
    table = pd.DataFrame(values[:, 1:].astype(float), columns=names_of_lines(plan.ks))
    means = _means(table, plan.ks)
    if "client" in lines:
        means |= _client_spread(table, lines.pop("client"), plan.ks)
    if exposure is not None:
        for k, (covered, uneven) in zip(plan.ks, exposure.tolist(), strict=True):
            means |= {f"coverage@{k}": covered, f"Gini@{k}": uneven}
    if plan.candidates:
        means = {sampled(name, plan.candidates): mean for name, mean in means.items()}
        table = table.rename(columns=lambda name: sampled(name, plan.candidates))
    table = pd.concat([lines, table], axis=1)
    return Evaluation(means, table.sort_values(list(lines), ignore_index=True))


def _means(table: pd.DataFrame, ks: Sequence[int]) -> dict[str, float]:
    """Mean and standard error of each column, and the F1 of averaged precision and recall."""
    means = {}
    for name, values in table.items():
        means |= {name: values.mean(), f"{name}/se": values.std() / len(table) ** 0.5}
    for k in ks:
        pair = table[[f"Precision@{k}", f"Recall@{k}"]]
        p, r = pair.mean()
        total = max(p + r, np.finfo(float).tiny)
        # Delta method: dF = 2 (r^2 dp + p^2 dr) / (p + r)^2 for F = 2 p r / (p + r).
        effect = pair @ (2 * (np.array([r, p]) / total) ** 2)
        means |= {f"F1@{k}": 2 * p * r / total, f"F1@{k}/se": effect.std() / len(table) ** 0.5}
    return {name: float(value) for name, value in means.items()}


def _client_spread(table: pd.DataFrame, clients: pd.Series, ks: Sequence[int]) -> dict[str, float]:
    """Of the mean over each client's users: standard deviation, and mean of the worst tenth."""
    spread = {}
    for name in [f"{metric}@{k}" for metric in ("NDCG", "Recall") for k in ks]:
        each = np.sort(np.asarray(table[name].groupby(clients).mean()))
        spread[f"{name}/client_std"] = float(each.std())
        spread[f"{name}/client_worst10%"] = float(each[: -(-len(each) // 10)].mean())
    return spread
