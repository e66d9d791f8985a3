"""Evaluation on the device: pack the users once, score and rank them block by block in one jit.

`make_plan` decides on the host who is evaluated, on what and in which order; `evaluator` makes of
a method and a plan a function of the state. One array of per-user values comes back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxrec.data.blocks import count, gather, grouped
from jaxrec.mesh import by_rows, divide, on_host, within
from jaxrec.ops import ranking
from jaxrec.types import TEST, VALID, DataError, Dataset, Method, SettingError

BLOCK = 512


class Bucket(NamedTuple):
    """Blocks of rankings with a similar number of targets; a padding line has none.

    The pairs (row, item) of a block are what its lines are not ranked on or, in the sampled
    protocol, the only items that they are. Padding has row B.
    """

    users: jax.Array  # int32 [blocks, B]
    targets: jax.Array  # int32 [blocks, B, T], I for padding
    row: jax.Array  # int32 [blocks, P]
    item: jax.Array  # int32 [blocks, P]


@dataclass(frozen=True, eq=False)
class Plan:
    """Who is evaluated on what: a line is a user or, where rows are ranked, a row of the split."""

    buckets: tuple[Bucket, ...]
    lines: pd.DataFrame  # user (-1: padding) and where known client, item, in the buckets' order
    items: int
    ks: tuple[int, ...]
    candidates: int  # negatives a line; 0: full ranking
    domain: np.ndarray | None = None  # [I], where rivals are of the target's one; -1: no rival


class Evaluation(NamedTuple):
    """Flat values ("NDCG@10", "NDCG@10/se", ...) and those of each line that they are means of.

    "F1@k" is the F1 of the averaged precision and recall, "meanF1@k" the mean of the lines' F1.
    """

    means: dict[str, float]
    per_user: pd.DataFrame  # user (and item, where rows are ranked), then one column a metric


def make_plan(
    dataset: Dataset,
    split: int = VALID,
    *,
    ks: Sequence[int] = (5, 10, 20),
    candidates: int = 0,
    listed: bool = False,
    seed: int = 0,
    block: int | None = None,
    ranking: Literal["users", "rows", "domains"] = "users",
    only: np.ndarray | None = None,
    mask_history: bool = True,
    catalogue: Literal["all", "known"] = "all",
    multiple: int = 1,
) -> Plan:
    """Pack the users who have items in `split`; the others are left out.

    Full ranking is over all items but those the user has in an earlier split: train for VALID,
    train and valid for TEST; without `mask_history` over those too. With `candidates` the targets
    are ranked among that many negatives, drawn for each line without replacement from the items the
    user has in no split; `seed` and the user's id (or the row's number) alone decide the draw.

    Args:
      dataset: split interactions; where they have clients, the spread over them is reported.
      split: VALID or TEST.
      ks: cut-offs.
      candidates: negatives a line; 0 for full ranking.
      listed: take the negatives from the dataset's `candidates`: the first of the user's list, but
        for the line's item, whatever else the user has of them.
      seed: of the negatives.
      block: lines ranked at a time, which bounds memory to a few arrays [block, I]; without it 512,
        and on an accelerator as many as make 2^26 scores, if those are more.
      ranking: what one line of the ranking has to find: "users", all that a user has in `split`;
        "rows", one row of it; "domains", one row, among the items of its own domain.
      only: bool [R], the rows that may be targets; all without it. What a user has in `split`
        beside them is a rival like any other item.
      mask_history: leave a user's earlier items out of the full ranking. Where users come back
        to the same items, those are part of what is to be predicted.
      catalogue: "known" leaves out, as targets and as rivals, the items without an earlier row.
        A log knows such an item only because it is held out, which gives it away.
      multiple: of lines that a block is padded to, such as the number of devices.

    Raises:
      DataError: there is no column `split`, or it has no such rows, or no domains are known, or no
        lists of candidates.
      SettingError: a number is out of range, or a line has too few negatives to draw from or in its
        list.
    """
    if block is None:
        room = 0 if jax.default_backend() == "cpu" else 2**26
        block = max(BLOCK, room // max(dataset.num_items, 1))
    if not ks or min(ks) < 1 or block < 1 or candidates < 0:
        raise SettingError(
            f"ks = {tuple(ks)}, block = {block}, candidates = {candidates}: needs at least one "
            f"cut-off, all from 1 up, block from 1 up and candidates from 0 up"
        )
    rows, part = dataset.interactions, {VALID: "valid", TEST: "test"}[split]
    if "split" not in rows:
        raise DataError(f"{dataset.name}: interactions have no column split: split them first")
    held = held_out(dataset, split, catalogue)
    where = np.flatnonzero(held & (True if only is None else only))
    wanted = rows[[c for c in ("user", "item", "client") if c in rows]].iloc[where]
    if wanted.empty:
        raise DataError(
            f"{dataset.name}: column split has no {part} rows ({split})"
            f"{'' if only is None else ' among the targets'}"
            f"{'' if catalogue == 'all' else ' with an item of an earlier split'}: "
            "make that part larger"
        )
    domain = _domains(dataset) if ranking == "domains" else None
    if catalogue == "known":
        domain = np.where(_known(dataset, split), 0 if domain is None else domain, -1)
    wanted = wanted.assign(line=wanted["user"].to_numpy() if ranking == "users" else where)
    line, first, number = np.unique(wanted["line"], return_index=True, return_counts=True)
    shown = ("user", "client", "item") if ranking != "users" else ("user", "client")
    lines = wanted[[column for column in shown if column in wanted]].iloc[first]
    lines = lines.set_axis(pd.Index(line, name="line")).assign(number=number)
    lines["width"] = _widths(number, min(block, BLOCK))
    lines = lines.sort_values(["width", *lines.columns.intersection(["client"])], kind="stable")
    width, number = (lines.pop(name).to_numpy() for name in ("width", "number"))
    place = np.empty(len(lines), np.int64)
    place[np.searchsorted(line, lines.index)] = np.arange(len(lines))
    place = place[np.searchsorted(line, wanted["line"])]
    targets = Lists.of(number, wanted["item"].to_numpy()[np.argsort(place, kind="stable")])

    if candidates:
        pairs = (
            _listed(dataset, lines, wanted, candidates, domain)
            if listed
            else _negatives(dataset, lines, candidates, seed, domain)
        )
        pairs = Lists.of(np.full(len(lines), candidates), pairs["item"].to_numpy())
    else:
        pairs = _by_user(dataset, split if mask_history else 0)
        first, number = (each[lines["user"].to_numpy()] for each in (pairs.first, pairs.number))
        pairs = pairs._replace(first=first, number=number)
    packed = []
    for start, stop in zip(*_runs(width), strict=True):
        own = slice(start, stop)
        lists = targets.cut(own), pairs.cut(own)
        packed.append(_pack(lines.iloc[own], *lists, block, multiple, dataset.num_items))
    return Plan(
        buckets=tuple(bucket for bucket, _ in packed),
        lines=pd.concat([own for _, own in packed], ignore_index=True),
        items=dataset.num_items,
        ks=tuple(ks),
        candidates=candidates,
        domain=None if candidates else domain,
    )


def held_out(dataset: Dataset, split: int, catalogue: str = "all") -> np.ndarray:
    """The rows of `split` that may be targets: bool [R]."""
    rows = dataset.interactions
    held = (rows["split"] == split).to_numpy()
    if catalogue == "known":
        held = held & gather(_known(dataset, split), rows["item"].to_numpy())
    return held


def _known(dataset: Dataset, split: int) -> np.ndarray:
    """Whether each item has a row in a split before `split`: bool [I]."""
    rows = dataset.interactions
    earlier = (rows["split"] < split).to_numpy()
    return count(rows["item"].to_numpy(), dataset.num_items, earlier) > 0


def _domains(dataset: Dataset) -> np.ndarray:
    """The domain of each item, [I]."""
    if "domain" not in dataset.items:
        raise DataError(
            f"{dataset.name}: ranking = 'domains' needs a column 'domain' of the items, which have "
            f"{list(dataset.items)}; rank 'rows' among all items"
        )
    return dataset.items["domain"].to_numpy()


def _widths(number: np.ndarray, block: int) -> np.ndarray:
    """The least power of 4 not below each number; a width that fills no block joins the next.

    Each width is one more program to compile, and four times the room costs little to count.
    """
    width = 4 ** np.ceil(np.log2(number) / 2).astype(int)
    for small, large in itertools.pairwise(np.unique(width)):
        if np.count_nonzero(width == small) < block:
            width[width == small] = large
    return width


class Lists(NamedTuple):
    """A list of items for each line: those from `first` on, `number` of them."""

    first: np.ndarray  # [lines]
    number: np.ndarray  # [lines]
    item: np.ndarray

    @classmethod
    def of(cls, number: np.ndarray, item: np.ndarray) -> Lists:
        """Lists that lie one after another in `item`."""
        return cls(np.cumsum(number) - number, number, item)

    def cut(self, lines: slice) -> Lists:
        return self._replace(first=self.first[lines], number=self.number[lines])

    def joined(self) -> np.ndarray:
        """The items of all lists, one list after another."""
        shift = self.first - (np.cumsum(self.number) - self.number)
        return self.item[np.repeat(shift, self.number) + np.arange(self.number.sum())]


def _by_user(dataset: Dataset, before: int) -> Lists:
    """The items that each user has in the splits before `before`, in the order of the rows."""
    rows = dataset.interactions
    user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
    earlier = (rows["split"] < before).to_numpy()
    lists = Lists.of(count(user, dataset.num_users, earlier), np.empty(earlier.sum(), np.int32))
    done = 0
    for order in grouped(user, dataset.num_users, where=earlier):
        lists.item[done : done + len(order)] = item[order]
        done += len(order)
    return lists


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs of equal values begin and end."""
    inner = np.flatnonzero(np.diff(values)) + 1
    return np.append(0, inner), np.append(inner, len(values))


def _pack(
    lines: pd.DataFrame, targets: Lists, listed: Lists, block: int, multiple: int, items: int
) -> tuple[Bucket, pd.DataFrame]:
    """The bucket of `lines`, in this order, and the lines with its padding, of user -1."""
    blocks = -(-len(lines) // block)
    size = -(-len(lines) // (blocks * multiple)) * multiple
    wanted = np.full((blocks * size, targets.number.max()), items, np.int32)
    wanted[: len(lines)][np.arange(wanted.shape[1]) < targets.number[:, None]] = targets.joined()

    each = [listed.cut(slice(at, at + size)) for at in range(0, len(lines), size)]
    most = max(own.number.sum() for own in each)
    row, item = np.full((blocks, most), size, np.int32), np.zeros((blocks, most), np.int32)
    for at, own in enumerate(each):
        number = own.number.sum()
        row[at, :number] = np.repeat(np.arange(len(own.number)), own.number)
        item[at, :number] = own.joined()

    padding = blocks * size - len(lines)
    bucket = Bucket(
        users=np.pad(lines["user"], (0, padding), mode="edge").reshape(blocks, size),
        targets=wanted.reshape(blocks, size, -1),
        row=row,
        item=item,
    )
    to_device = lambda array: jnp.asarray(array, jnp.int32)
    filler = pd.DataFrame(-1, index=range(padding), columns=lines.columns)
    return jax.tree.map(to_device, bucket), pd.concat([lines, filler])


def _negatives(
    dataset: Dataset, lines: pd.DataFrame, number: int, seed: int, domain: np.ndarray | None
) -> pd.DataFrame:
    """`number` distinct items for each line, none of which its user has in any split.

    With `domain` [I] they are of the domain of the line's item.
    """
    own = dataset.interactions.groupby("user")["item"].unique()
    domain = np.zeros(dataset.num_items, int) if domain is None else domain
    pools = [np.flatnonzero(domain == d) for d in range(domain.max() + 1)]
    drawn = []
    for line, user, d in zip(lines.index, lines["user"], _of(lines, domain), strict=True):
        seen = np.searchsorted(pools[d], np.sort(own[user][domain[own[user]] == d]))
        unseen = len(pools[d]) - len(seen)
        if unseen < number:
            within = f" of domain {d}" if len(pools) > 1 else ""
            raise SettingError(
                f"candidates = {number}: user {user} has only {unseen} items{within} never "
                f"interacted with; ask for at most that many, or for 0, the full ranking"
            )
        draw = np.random.default_rng([seed, line]).choice(unseen, number, replace=False)
        # The p-th unseen item comes after those seen ones that have at most p unseen before them.
        skipped = np.searchsorted(seen - np.arange(len(seen)), draw, side="right")
        drawn.append(pools[d][draw + skipped])
    return pd.DataFrame({"line": np.repeat(lines.index, number), "item": np.concatenate(drawn)})


def _listed(
    dataset: Dataset,
    lines: pd.DataFrame,
    wanted: pd.DataFrame,
    number: int,
    domain: np.ndarray | None,
) -> pd.DataFrame:
    """The first `number` items of each line's list that are not what the line has to find.

    With `domain` [I] they are of the domain of the line's item.
    """
    if dataset.candidates is None:
        raise DataError(
            f"{dataset.name}: listed = True needs lists of candidates, a file candidates.parquet "
            "with columns user and candidates beside the interactions; or set listed = False"
        )
    pairs = lines[["user"]].rename_axis("line").reset_index().merge(dataset.candidates, on="user")
    if domain is not None:
        of = pd.Series(_of(lines, domain), lines.index)
        pairs = pairs[domain[pairs["item"]] == of[pairs["line"]].to_numpy()]
    found = pairs[["line", "item"]].merge(wanted[["line", "item"]], how="left", indicator=True)
    pairs = found.loc[found["_merge"] == "left_only", ["line", "item"]]
    counts = pairs["line"].value_counts().reindex(lines.index, fill_value=0)
    if (counts < number).any():
        short = counts.idxmin()
        raise SettingError(
            f"candidates = {number}: the list of user {lines.loc[short, 'user']} has only "
            f"{counts[short]} candidates beside what is to be found; ask for at most that many"
        )
    return pairs.groupby("line").head(number)


def _of(lines: pd.DataFrame, domain: np.ndarray) -> np.ndarray:
    """The domain of each line's item; 0 where lines are users."""
    return domain[lines["item"]] if "item" in lines else np.zeros(len(lines), int)


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
    lists = lists and not plan.candidates
    domain = None if plan.domain is None else jnp.asarray(plan.domain)
    longest = max(plan.ks)
    names = [*(f"{name}@{k}" for name in ranking.AT_K for k in plan.ks), "MRR"]

    @jax.jit
    def run(state, data, buckets):
        served = method.prepare(state, data)

        def rank(block: Bucket):
            block = block._replace(users=divide(block.users), targets=divide(block.targets))
            scores = divide(method.score(served, block.users).astype(jnp.float32))  # [B, I]
            broken = ~(jnp.max(scores, axis=-1) < jnp.inf)  # max hands NaN on
            listed = divide(jnp.zeros(scores.shape, bool))
            listed = listed.at[block.row, block.item].set(True, mode="drop")
            excluded = ~listed if plan.candidates else listed
            mask = block.targets < plan.items
            if domain is not None:
                excluded |= domain != domain[block.targets[:, :1]]
            places = ranking.places(ranking.ranks(scores, block.targets, mask, excluded), longest)
            best = partial(ranking.top, k=longest)
            return broken, places, by_rows(best, scores, excluded) if lists else None

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

    if method.rank:
        run = _list_ranker(method, plan, names)

    def evaluate(state, data) -> Evaluation:
        with within(devices):
            values, spread = on_host(run(state, data, plan.buckets))
        real = plan.lines["user"] >= 0
        values, lines = values[real], plan.lines[real].reset_index(drop=True)
        users = lines["user"].to_numpy()
        if (broken := values[:, 0] > 0).any():
            raise FloatingPointError(
                f"scores of user {users[broken].min()} hold NaN or +inf, as do those of "
                f"{broken.sum():,} of {len(users):,} users: lower the learning rate"
            )
        table = pd.DataFrame(values[:, 1:].astype(float), columns=names)
        table = table.rename(columns={f"F1@{k}": f"meanF1@{k}" for k in plan.ks})
        means = _means(table, plan.ks)
        if "client" in lines:
            means |= _client_spread(table, lines.pop("client"), plan.ks)
        if lists:
            for k, (covered, uneven) in zip(plan.ks, spread.tolist(), strict=True):
                means |= {f"coverage@{k}": covered, f"Gini@{k}": uneven}
        if plan.candidates:
            means = {_labelled(name, plan.candidates): mean for name, mean in means.items()}
            table = table.rename(columns=lambda name: _labelled(name, plan.candidates))
        table = pd.concat([lines, table], axis=1)
        return Evaluation(means, table.sort_values(list(lines), ignore_index=True))

    return evaluate


def _list_ranker(method: Method, plan: Plan, names: Sequence[str]) -> Callable:
    """As `run` of `evaluator`, for a method that ranks lists: each line's target and its rivals."""
    if not plan.candidates or "item" not in plan.lines:
        raise SettingError(
            f"candidates = {plan.candidates}: this method ranks short lists with one item to find, "
            "not the full catalogue; set candidates, such as 9, and ranking = 'rows' or 'domains'"
        )
    found = []
    for bucket in plan.buckets:
        for block in zip(*map(np.asarray, bucket), strict=True):
            _, targets, row, item = block
            real = targets[:, 0] < plan.items
            rivals = item[np.argsort(row, kind="stable")][: real.sum() * plan.candidates]
            each = np.column_stack([targets[real, 0], rivals.reshape(-1, plan.candidates)])
            found.append(np.sort(each, axis=1))  # the target's place tells nothing
    lists, real = np.concatenate(found), plan.lines["user"].to_numpy() >= 0
    is_target = lists == plan.lines["item"].to_numpy()[real, None]

    @jax.jit
    def measure(ranks):
        values = ranking.metrics(ranking.places(ranks[:, None], max(plan.ks)), plan.ks)
        return jnp.stack([values[name] for name in names], axis=-1)

    def run(state, data, buckets):
        del buckets
        served, users = method.prepare(state, data), plan.lines["user"].to_numpy()[real]
        scores = np.asarray(method.rank(served, users, lists))
        broken = ~(scores.max(1) < np.inf)
        ranks = (scores >= scores[is_target][:, None]).sum(1)  # the target is one of them
        table = np.zeros((len(real), 1 + len(names)), np.float32)
        table[real] = np.column_stack([broken, measure(ranks)])
        return table, None

    return run


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
        each = np.sort(table[name].groupby(clients).mean())
        spread[f"{name}/client_std"] = float(each.std())
        spread[f"{name}/client_worst10%"] = float(each[: -(-len(each) // 10)].mean())
    return spread


def _labelled(name: str, candidates: int) -> str:
    """The protocol in the name, before any suffix: HR@10/se -> HR@10(99 negatives)/se."""
    metric, slash, suffix = name.partition("/")
    return f"{metric}({candidates} negatives){slash}{suffix}"
