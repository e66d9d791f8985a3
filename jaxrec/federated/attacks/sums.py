"""Whole histories from a sum over clients, G = sum_u x_u x_u^T with x_u in {0, 1}^I.

    count_one   an item of one user has that user's history as its row
    peel        take what was read out of the sum, and read again
    few         an item of c users: their histories span the vectors of G's range that are zero
                outside the item's row
    pairs       two items that one user alone has together: the same, zero outside both rows

The last two need fewer users than items, for otherwise G has full rank and its range says nothing.
All of them return histories int8 [n, I], each of one user for certain.
"""

from __future__ import annotations

import numpy as np

from jaxrec.types import DataError

ROUNDING = 1e-12  # times the largest and their number: eigenvalues up to here are rounding
EXACT = 1e-6  # an eigenvalue of a projector that is this near to 1 is 1


def count_one(gram: np.ndarray) -> np.ndarray:
    """Histories that are rows of G [I, I]: those of items with count 1, each history once."""
    gram = integers(gram)
    rows = gram[np.diagonal(gram) == 1]
    return np.unique((rows > 0).astype(np.int8), axis=0)


def peel(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Histories [n, I] by `count_one` again and again, and what of G is left [I, I]."""
    gram, found = integers(gram), []
    while len(new := count_one(gram)):
        found.append(new)
        gram = without(gram, new)
    return _stacked(found, len(gram)), gram


def few(gram: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Histories [n, I] of the users of items with counts up to `most`, and what of G is left."""
    return _read(gram, lambda gram, projector: _of_few(gram, projector, most))


def pairs(gram: np.ndarray, tries: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Histories [n, I] of users who alone have a pair of items, and what of G is left.

    Args:
      tries: pairs that are looked at in one go, those with the fewest items in common first.
    """
    return _read(gram, lambda gram, projector: _of_pairs(gram, projector, tries))


def difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The Gram matrix of whoever is in one of two sums and not in the other, [I, I].

    A secure sum hides a client among those of one sum. Where two sums are over the same clients but
    one, it hides nothing of that one.
    """
    return np.abs(integers(after) - integers(before))


def supported(gram: np.ndarray, least: int) -> np.ndarray:
    """G with the rows and columns of items that fewer than `least` users have set to zero."""
    known = np.diagonal(gram) >= least
    return np.where(known[:, None] & known, gram, 0)


def without(gram: np.ndarray, histories: np.ndarray) -> np.ndarray:
    """G less the users whose `histories` [n, I] are known."""
    rows = histories.astype(np.float64)
    return gram - np.rint(rows.T @ rows).astype(np.int64)


def integers(gram: np.ndarray) -> np.ndarray:
    """G as int64; DataError where it is no matrix of counts."""
    rounded = np.rint(gram)
    if np.abs(gram - rounded).max(initial=0) > 0.3:
        raise DataError(
            "the matrix has entries far from integers: it is no sum of 0/1 histories; undo its "
            "normalisation first (jaxrec.federated.attacks.models)"
        )
    return rounded.astype(np.int64)


def full_rank(gram: np.ndarray) -> bool:
    """Whether G [I, I] has full rank on its items: then `few` and `pairs` find nothing."""
    return _projector(_live(gram)[1])[1] == 0


def _read(gram, attack) -> tuple[np.ndarray, np.ndarray]:
    """Peel, attack what is left, and again, until neither finds anything."""
    items, found = len(gram), []
    while True:
        new, gram = peel(gram)
        found.append(new)
        live, rest = _live(gram)
        projector, missing = _projector(rest)
        new = attack(rest, projector) if missing else []
        if not len(new):
            return _stacked(found, items), gram
        whole = np.zeros((len(new), items), np.int8)
        whole[:, live] = new
        found.append(whole)
        gram = without(gram, whole)


def _live(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    live = np.flatnonzero(np.diagonal(gram) > 0)
    return live, gram[np.ix_(live, live)]


def _projector(gram: np.ndarray) -> tuple[np.ndarray, int]:
    """The projector onto G's range, and how many dimensions are missing there."""
    if not len(gram):
        return gram.astype(np.float64), 0
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    kept = values > ROUNDING * len(gram) * values[-1]
    return vectors[:, kept] @ vectors[:, kept].T, int(len(gram) - kept.sum())


def _inside(projector: np.ndarray, items: np.ndarray) -> np.ndarray:
    """A basis [J, d] of the range's vectors that are zero outside `items` [J]."""
    values, vectors = np.linalg.eigh(projector[np.ix_(items, items)])
    return vectors[:, values > 1 - EXACT]


def _of_few(gram: np.ndarray, projector: np.ndarray, most: int) -> np.ndarray:
    found = []
    counts = np.diagonal(gram)
    for item in np.argsort(counts, kind="stable"):
        if counts[item] > most:
            break
        near = np.flatnonzero(gram[item])
        basis = _inside(projector, near)
        if basis.shape[1] != counts[item]:
            continue
        # Items that one of the users has are at a corner; there are as many corners as users.
        corners = _distinct(basis[gram[item, near] == 1])
        if len(corners) != counts[item] or np.linalg.matrix_rank(corners) < len(corners):
            continue
        users = basis @ np.linalg.inv(corners)
        if _binary(users):
            rows = np.zeros((users.shape[1], len(gram)), np.int8)
            rows[:, near] = np.rint(users).T
            found.append(rows)
    return np.unique(_stacked(found, len(gram)), axis=0)


def _of_pairs(gram: np.ndarray, projector: np.ndarray, tries: int) -> np.ndarray:
    linked = (gram > 0).astype(np.float32)
    common = linked @ linked
    pairs = np.argwhere(np.triu(gram == 1, 1))
    sizes = common[pairs[:, 0], pairs[:, 1]]
    # Fewer items outside than users leave vectors that are no history.
    missing = len(gram) - round(float(np.trace(projector)))
    order = [n for n in np.argsort(sizes, kind="stable") if sizes[n] <= missing + 1][:tries]
    found = np.zeros((0, len(gram)), np.int8)
    for one, other in pairs[order]:
        if (found[:, one] & found[:, other]).any():
            continue
        near = np.flatnonzero((gram[one] > 0) & (gram[other] > 0))
        basis = _inside(projector, near)
        if basis.shape[1] != 1:
            continue
        history = basis / basis[np.argmax(np.abs(basis))]
        if _binary(history):
            row = np.zeros((1, len(gram)), np.int8)
            row[0, near] = np.rint(history[:, 0])
            found = np.concatenate([found, row])
    return found


def _distinct(points: np.ndarray) -> np.ndarray:
    """Points [n, d] without those that are next to an earlier one."""
    kept = points[:0]
    for point in points:
        if not len(kept) or np.abs(kept - point).max(axis=1).min() > 1e-4:
            kept = np.concatenate([kept, point[None]])
    return kept


def _binary(values: np.ndarray) -> bool:
    rounded = np.rint(values)
    return bool(np.abs(values - rounded).max() < 1e-2 and set(np.unique(rounded)) <= {0.0, 1.0})


def _stacked(found: list[np.ndarray], items: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, items), np.int8), *found])
