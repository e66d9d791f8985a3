"""Evaluation on the device: pack the users once, score and rank them block by block in one jit.

`make_plan` decides on the host who is evaluated, on what and in which order; `evaluator` makes of
a method and a plan a function of the state. One array of per-user values comes back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxrec.ops import ranking
from jaxrec.types import TEST, VALID, DataError, Dataset, Method, SettingError


class Bucket(NamedTuple):
    """Blocks of users with a similar number of targets; a padding user has none.

    The pairs (row, item) of a block are what its users are not ranked on or, in the sampled
    protocol, the only items that they are. Padding has row B.
    """

    users: jax.Array  # int32 [blocks, B]
    targets: jax.Array  # int32 [blocks, B, T], I for padding
    row: jax.Array  # int32 [blocks, P]
    item: jax.Array  # int32 [blocks, P]


@dataclass(frozen=True, eq=False)
class Plan:
    """Who is evaluated on what; `users` and `clients` follow the rows of the buckets."""

    buckets: tuple[Bucket, ...]
    users: np.ndarray  # [U], -1 for padding
    clients: np.ndarray | None  # [U]
    items: int
    ks: tuple[int, ...]
    candidates: int  # negatives a user; 0: full ranking


class Evaluation(NamedTuple):
    """Flat values ("NDCG@10", "NDCG@10/se", ...) and the per-user ones that they are means of.

    "F1@k" is the F1 of the averaged precision and recall, "meanF1@k" the mean of the users' F1.
    """

    means: dict[str, float]
    per_user: pd.DataFrame  # user, then one column a metric


def make_plan(
    dataset: Dataset,
    split: int = VALID,
    *,
    ks: Sequence[int] = (5, 10, 20),
    candidates: int = 0,
    seed: int = 0,
    block: int = 512,
    targets: np.ndarray | None = None,
    mask_history: bool = True,
) -> Plan:
    """Pack the users who have items in `split`; the others are left out.

    Full ranking is over all items but those the user has in an earlier split: train for VALID,
    train and valid for TEST; without `mask_history` over those too. With `candidates` the targets
    are ranked among that many negatives, drawn for each user without replacement from the items the
    user has in no split; `seed` and the user's id alone decide the draw.

    Args:
      dataset: split interactions; where they have clients, the spread over them is reported.
      split: VALID or TEST.
      ks: cut-offs.
      candidates: negatives a user; 0 for full ranking.
      seed: of the negatives.
      block: users ranked at a time, which bounds memory to a few arrays [block, I].
      targets: items to find; all of the split's without it. What a user has in `split` beside
        them is a rival like any other item.
      mask_history: leave a user's earlier items out of the full ranking. Where users come back
        to the same items, those are part of what is to be predicted.

    Raises:
      DataError: there is no column `split`, or it has no such rows.
      SettingError: a number is out of range, or a user has too few negatives to draw from.
    """
    if not ks or min(ks) < 1 or block < 1 or candidates < 0:
        raise SettingError(
            f"ks = {tuple(ks)}, block = {block}, candidates = {candidates}: needs at least one "
            f"cut-off, all from 1 up, block from 1 up and candidates from 0 up"
        )
    rows, part = dataset.interactions, {VALID: "valid", TEST: "test"}[split]
    if "split" not in rows:
        raise DataError(f"{dataset.name}: interactions have no column split: split them first")
    wanted = rows[rows["split"] == split]
    if targets is not None:
        wanted = wanted[wanted["item"].isin(targets)]
    if wanted.empty:
        raise DataError(
            f"{dataset.name}: column split has no {part} rows ({split})"
            f"{'' if targets is None else ' among the targets'}: make that part larger"
        )
    number = wanted.groupby("user").size()
    client = rows.groupby("user")["client"].first() if "client" in rows else None
    order = pd.DataFrame({"width": _widths(number.to_numpy(), block)}, index=number.index)
    order["client"] = 0 if client is None else client
    order = order.sort_values(["width", "client"], kind="stable")

    if candidates:
        listed = _negatives(dataset, number.index, candidates, seed)
    else:
        listed = rows[(rows["split"] < split) & mask_history]
    packed = [
        _pack(users.index.to_numpy(), wanted, listed, block, dataset.num_items)
        for _, users in order.groupby("width")
    ]
    users = np.concatenate([users for _, users in packed])
    return Plan(
        buckets=tuple(bucket for bucket, _ in packed),
        users=users,
        clients=None if client is None else client.reindex(users).to_numpy(),
        items=dataset.num_items,
        ks=tuple(ks),
        candidates=candidates,
    )


def _widths(number: np.ndarray, block: int) -> np.ndarray:
    """The least power of 4 not below each number; a width that fills no block joins the next.

    Each width is one more program to compile, and four times the room costs little to count.
    """
    width = 4 ** np.ceil(np.log2(number) / 2).astype(int)
    for small, large in itertools.pairwise(np.unique(width)):
        if np.count_nonzero(width == small) < block:
            width[width == small] = large
    return width


def _pack(
    users: np.ndarray, wanted: pd.DataFrame, listed: pd.DataFrame, block: int, items: int
) -> tuple[Bucket, np.ndarray]:
    """The bucket of `users`, in this order, and the user of each of its rows, -1 for padding."""
    blocks = -(-len(users) // block)
    size = -(-len(users) // blocks)
    place = pd.Series(np.arange(len(users)), index=users)
    within = lambda rows: rows[rows["user"].isin(users)]

    wanted = within(wanted)
    at, column = place[wanted["user"]].to_numpy(), wanted.groupby("user").cumcount()
    targets = np.full((blocks * size, column.max() + 1), items)
    targets[at, column] = wanted["item"]

    listed = within(listed)
    in_block, at = np.divmod(place[listed["user"]].to_numpy(), size)
    column = listed.groupby(in_block).cumcount()
    row = np.full((blocks, column.max() + 1 if len(column) else 0), size)
    item = np.zeros_like(row)
    row[in_block, column], item[in_block, column] = at, listed["item"]

    padding = (0, blocks * size - len(users))
    bucket = Bucket(
        users=np.pad(users, padding, mode="edge").reshape(blocks, size),
        targets=targets.reshape(blocks, size, -1),
        row=row,
        item=item,
    )
    to_device = lambda array: jnp.asarray(array, jnp.int32)
    return jax.tree.map(to_device, bucket), np.pad(users, padding, constant_values=-1)


def _negatives(dataset: Dataset, users: pd.Index, number: int, seed: int) -> pd.DataFrame:
    """`number` distinct items for each user, none of which the user has in any split."""
    own = dataset.interactions.groupby("user")["item"].unique()
    drawn = []
    for user in users:
        seen = np.sort(own[user])
        unseen = dataset.num_items - len(seen)
        if unseen < number:
            raise SettingError(
                f"candidates = {number}: user {user} has only {unseen} items never interacted "
                f"with; ask for at most that many, or for 0, the full ranking"
            )
        draw = np.random.default_rng([seed, user]).choice(unseen, number, replace=False)
        # The p-th unseen item comes after those seen ones that have at most p unseen before them.
        skipped = np.searchsorted(seen - np.arange(len(seen)), draw, side="right")
        drawn.append(draw + skipped)
    return pd.DataFrame({"user": np.repeat(users, number), "item": np.concatenate(drawn)})


def evaluator(
    method: Method, plan: Plan, *, lists: bool = True
) -> Callable[[Any, Any], Evaluation]:
    """A function (state, data) -> Evaluation, compiled at its first call and never again.

    Args:
      method: its `prepare` runs once a call, its `score` once a block.
      plan: from `make_plan`.
      lists: in full ranking, also make top-k lists for coverage@k and Gini@k.

    The function raises FloatingPointError for a score that is NaN or +inf; it names the first user.
    """
    lists = lists and not plan.candidates
    longest = max(plan.ks)
    names = [*(f"{name}@{k}" for name in ranking.AT_K for k in plan.ks), "MRR"]

    @jax.jit
    def run(state, data, buckets):
        served = method.prepare(state, data)

        def rank(block: Bucket):
            scores = method.score(served, block.users).astype(jnp.float32)  # [B, I]
            broken = ~(jnp.max(scores, axis=-1) < jnp.inf)  # max hands NaN on
            listed = jnp.zeros(scores.shape, bool).at[block.row, block.item].set(True, mode="drop")
            excluded = ~listed if plan.candidates else listed
            mask = block.targets < plan.items
            places = ranking.places(ranking.ranks(scores, block.targets, mask, excluded), longest)
            shown = ranking.top(scores, excluded, longest) if lists else None
            return broken, places, shown

        blocks = [jax.lax.map(rank, bucket) for bucket in buckets]
        by_user = lambda *each: jnp.concatenate([x.reshape(-1, *x.shape[2:]) for x in each])
        broken, places, shown = jax.tree.map(by_user, *blocks)  # [U, ...]
        values = ranking.metrics(places, plan.ks)
        table = jnp.stack([broken, *(values[name] for name in names)], axis=-1)
        if not lists:
            return table, None
        shown = jnp.where(places.number[:, None] > 0, shown, plan.items)
        counts = ranking.exposure(shown, plan.items, plan.ks)
        return table, jnp.stack([ranking.coverage(counts), ranking.gini(counts)], axis=-1)

    def evaluate(state, data) -> Evaluation:
        values, spread = jax.device_get(run(state, data, plan.buckets))
        real = plan.users >= 0
        values, users = values[real], plan.users[real]
        if (broken := values[:, 0] > 0).any():
            raise FloatingPointError(
                f"scores of user {users[broken].min()} hold NaN or +inf, as do those of "
                f"{broken.sum():,} of {len(users):,} users: lower the learning rate"
            )
        table = pd.DataFrame(values[:, 1:].astype(float), columns=names)
        table = table.rename(columns={f"F1@{k}": f"meanF1@{k}" for k in plan.ks})
        means = _means(table, plan.ks)
        if plan.clients is not None:
            means |= _client_spread(table, plan.clients[real], plan.ks)
        if lists:
            for k, (covered, uneven) in zip(plan.ks, spread.tolist(), strict=True):
                means |= {f"coverage@{k}": covered, f"Gini@{k}": uneven}
        if plan.candidates:
            means = {_labelled(name, plan.candidates): mean for name, mean in means.items()}
            table = table.rename(columns=lambda name: _labelled(name, plan.candidates))
        table.insert(0, "user", users)
        return Evaluation(means, table.sort_values("user", ignore_index=True))

    return evaluate


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


def _client_spread(table: pd.DataFrame, clients: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Of the mean over each client's users: standard deviation, and mean of the worst tenth."""
    spread = {}
    for name in [f"{metric}@{k}" for metric in ("NDCG", "Recall") for k in ks]:
        each = np.sort(table[name].groupby(clients).mean())
        spread[f"{name}/client_std"] = float(each.std())
        spread[f"{name}/client_worst10%"] = float(each[: -(-len(each) // 10)].mean())
    return spread


def _labelled(name: str, candidates: int) -> str:
    """The protocol in the name, before any suffix: HR@10/se -> HR@10(99 negatives)/se."""
    metric, slash, suffix = name.partition("/")
    return f"{metric}({candidates} negatives){slash}{suffix}"
