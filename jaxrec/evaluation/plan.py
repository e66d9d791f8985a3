"""Who is evaluated, on what and in which order, decided on the host and packed for the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxrec.data.blocks import count, gather
from jaxrec.evaluation.rivals import Lists, draw_negatives, items_before, listed_candidates
from jaxrec.types import TEST, VALID, DataError, Dataset, SettingError

BLOCK = 512  # lines that are ranked at a time, at least
SCORES = 2**26  # of a block on an accelerator

Ranking = Literal["users", "rows", "domains"]
Catalogue = Literal["all", "known"]


class Bucket(NamedTuple):
    """Blocks of B lines with a similar number of targets; a padding line has none.

    A pair (row, item) of a block says that its line `row` leaves `item` out of its ranking or, in
    the sampled protocol, ranks it; only such items are then ranked. Padding has row B.
    """

    users: jax.Array  # int32 [blocks, B]
    targets: jax.Array  # int32 [blocks, B, targets], I for padding
    row: jax.Array  # int32 [blocks, pairs]
    item: jax.Array  # int32 [blocks, pairs]


@dataclass(frozen=True, eq=False)
class Plan:
    """Who is evaluated on what: a line is a user or, where rows are ranked, a row of the split."""

    buckets: tuple[Bucket, ...]
    lines: pd.DataFrame  # user (-1: padding) and where known client, item, in the buckets' order
    items: int
    ks: tuple[int, ...]
    candidates: int  # negatives a line; 0: full ranking
    domain: np.ndarray | None = None  # [I], where rivals are of the target's one; -1: no rival


def make_plan(
    dataset: Dataset,
    split: int = VALID,
    *,
    ks: Sequence[int] = (5, 10, 20),
    candidates: int = 0,
    listed: bool = False,
    seed: int = 0,
    block: int | None = None,
    ranking: Ranking = "users",
    only: np.ndarray | None = None,
    mask_history: bool = True,
    catalogue: Catalogue = "all",
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
      listed: take the negatives from the start of the user's list in the dataset's `candidates`,
        whatever else the user has of them; the line's own item is passed over.
      seed: of the negatives.
      block: lines ranked at a time, which bounds memory to a few arrays [block, I]; without it 512,
        and on an accelerator as many as make 2^26 scores, if those are more.
      ranking: what one line has to find: "users", all that a user has in `split`; "rows", one row
        of it; "domains", one row, among the items of its own domain.
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
        at_once = 0 if jax.default_backend() == "cpu" else SCORES
        block = max(BLOCK, at_once // max(dataset.num_items, 1))
    if not ks or min(ks) < 1 or block < 1 or candidates < 0:
        raise SettingError(
            f"ks = {tuple(ks)}, block = {block}, candidates = {candidates}: needs at least one "
            f"cut-off, all from 1 up, block from 1 up and candidates from 0 up"
        )
    targets = _targets(dataset, split, ranking, only, catalogue)
    domain = _domains(dataset, split, ranking, catalogue)
    lines, padded, to_find = _lines(targets, ranking, min(block, BLOCK))
    if not candidates:
        others = items_before(dataset, lines["user"].to_numpy(), split if mask_history else 0)
    elif listed:
        others = listed_candidates(dataset, lines, targets, candidates, domain)
    else:
        others = draw_negatives(dataset, lines, candidates, seed, domain)
    packed = [
        _pack(lines.iloc[own], to_find.cut(own), others.cut(own), block, multiple, dataset)
        for own in _runs(padded)
    ]
    return Plan(
        buckets=tuple(bucket for bucket, _ in packed),
        lines=pd.concat([own for _, own in packed], ignore_index=True),
        items=dataset.num_items,
        ks=tuple(ks),
        candidates=candidates,
        domain=None if candidates else domain,
    )


def held_out(dataset: Dataset, split: int, catalogue: Catalogue = "all") -> np.ndarray:
    """The rows of `split` that may be targets: bool [R]."""
    rows = dataset.interactions
    held = (rows["split"] == split).to_numpy()
    if catalogue == "known":
        held = held & gather(_known(dataset, split), rows["item"].to_numpy())
    return held


def _targets(
    dataset: Dataset, split: int, ranking: Ranking, only: np.ndarray | None, catalogue: Catalogue
) -> pd.DataFrame:
    """Rows user, item, (client) and the number of the line that has to find the row's item."""
    rows, part = dataset.interactions, {VALID: "valid", TEST: "test"}[split]
    if "split" not in rows:
        raise DataError(f"{dataset.name}: interactions have no column split: split them first")
    held = held_out(dataset, split, catalogue)
    where = np.flatnonzero(held & (True if only is None else only))
    if not where.size:
        raise DataError(
            f"{dataset.name}: column split has no {part} rows ({split})"
            f"{'' if only is None else ' among the targets'}"
            f"{'' if catalogue == 'all' else ' with an item of an earlier split'}: "
            "make that part larger"
        )
    targets = rows[[c for c in ("user", "item", "client") if c in rows]].iloc[where]
    return targets.assign(line=targets["user"].to_numpy() if ranking == "users" else where)


def _domains(
    dataset: Dataset, split: int, ranking: Ranking, catalogue: Catalogue
) -> np.ndarray | None:
    """The domain of each item [I], -1 where it is nobody's rival; None where all are rivals."""
    domain = None
    if ranking == "domains":
        if "domain" not in dataset.items:
            raise DataError(
                f"{dataset.name}: ranking = 'domains' needs a column 'domain' of the items, which "
                f"have {list(dataset.items)}; rank 'rows' among all items"
            )
        domain = dataset.items["domain"].to_numpy()
    if catalogue == "known":
        domain = np.where(_known(dataset, split), 0 if domain is None else domain, -1)
    return domain


def _known(dataset: Dataset, split: int) -> np.ndarray:
    """Whether each item has a row in a split before `split`: bool [I]."""
    rows = dataset.interactions
    earlier = (rows["split"] < split).to_numpy()
    return count(rows["item"].to_numpy(), dataset.num_items, earlier) > 0


def _lines(
    targets: pd.DataFrame, ranking: Ranking, block: int
) -> tuple[pd.DataFrame, np.ndarray, Lists]:
    """The lines, a bucket's after another's: what is known of them, and what they have to find.

    Returns:
      (user and where known client, item, by the line's number; the number of targets that each
      line is padded to, [lines]; the targets).
    """
    line, begin, number = np.unique(targets["line"], return_index=True, return_counts=True)
    shown = ("user", "client") if ranking == "users" else ("user", "client", "item")
    lines = targets[[column for column in shown if column in targets]].iloc[begin]
    lines = lines.set_axis(pd.Index(line, name="line")).assign(number=number)
    lines["padded"] = _padded_numbers(number, block)
    lines = lines.sort_values(["padded", *lines.columns.intersection(["client"])], kind="stable")
    padded, number = (lines.pop(name).to_numpy() for name in ("padded", "number"))
    place = np.empty(len(lines), np.int64)
    place[np.searchsorted(line, lines.index)] = np.arange(len(lines))
    place = place[np.searchsorted(line, targets["line"])]
    item = targets["item"].to_numpy()[np.argsort(place, kind="stable")]
    return lines, padded, Lists.of(number, item)


def _padded_numbers(number: np.ndarray, block: int) -> np.ndarray:
    """The least power of 4 not below each number; one that fills no block joins the next.

    Each is one more program to compile, and four times the padding costs little to count.
    """
    padded = 4 ** np.ceil(np.log2(number) / 2).astype(int)
    for small, large in itertools.pairwise(np.unique(padded)):
        if np.count_nonzero(padded == small) < block:
            padded[padded == small] = large
    return padded


def _runs(values: np.ndarray) -> Iterator[slice]:
    """The runs of equal values."""
    inner = np.flatnonzero(np.diff(values)) + 1
    for start, stop in itertools.pairwise([0, *inner.tolist(), len(values)]):
        yield slice(start, stop)


def _pack(
    lines: pd.DataFrame, targets: Lists, others: Lists, block: int, multiple: int, dataset: Dataset
) -> tuple[Bucket, pd.DataFrame]:
    """The bucket of `lines`, in this order, and the lines with its padding, of user -1."""
    blocks = -(-len(lines) // block)
    size = -(-len(lines) // (blocks * multiple)) * multiple
    wanted = np.full((blocks * size, targets.number.max()), dataset.num_items, np.int32)
    wanted[: len(lines)][np.arange(wanted.shape[1]) < targets.number[:, None]] = targets.joined()

    each = [others.cut(slice(at, at + size)) for at in range(0, len(lines), size)]
    most = max(own.number.sum() for own in each)
    row, item = np.full((blocks, most), size, np.int32), np.zeros((blocks, most), np.int32)
    for at, own in enumerate(each):
        number = own.number.sum()
        row[at, :number] = np.repeat(np.arange(len(own.number)), own.number)
        item[at, :number] = own.joined()

    padding = blocks * size - len(lines)
    users = np.pad(lines["user"].to_numpy(), (0, padding), mode="edge").reshape(blocks, size)
    arrays = users, wanted.reshape(blocks, size, -1), row, item
    filler = pd.DataFrame(-1, index=range(padding), columns=lines.columns)
    bucket = Bucket(*(jnp.asarray(array, jnp.int32) for array in arrays))
    return bucket, pd.concat([lines, filler])
