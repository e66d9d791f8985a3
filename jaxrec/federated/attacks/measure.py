"""How good a guess is: AUC, precision at n, and what a guess by popularity reaches.

Whoever knows which items are popular guesses a client's items well without any upload. An attack
has learned something only where it does better, so its advantage over that guess is what counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata


class Guess(NamedTuple):
    """A guess and the one by popularity, as means over clients."""

    auc: float
    precision: float  # of the n highest scores, n = the client's number of items
    popularity_auc: float
    popularity_precision: float

    @property
    def advantage(self) -> float:
        """The AUC above that of popularity."""
        return self.auc - self.popularity_auc


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """Chance that a member's score is above another's, ties counting half; scores [M] and [O]."""
    ranks = rankdata(np.concatenate([members, others]))
    number = len(members)
    return float((ranks[:number].sum() - number * (number + 1) / 2) / (number * len(others)))


def precision(scores: np.ndarray, held: np.ndarray) -> float:
    """Share of held items among the n highest scores [I]; `held` bool [I] has n of them.

    Where several items tie for the last places, the mean over all orders of them counts.
    """
    number = int(held.sum())
    last = np.partition(scores, -number)[-number]
    above, tied = scores > last, scores == last
    return float((held[above].sum() + (number - above.sum()) * held[tied].mean()) / number)


def guess(scores: np.ndarray, held: np.ndarray, counts: np.ndarray) -> Guess:
    """An attack's scores [C, I] against what the clients hold, bool [C, I]; `counts` [I] of items.

    A client that holds nothing, or everything, says nothing of an attack and is left out.
    """
    known = [row for row in range(len(held)) if 0 < held[row].sum() < held.shape[1]]
    one = lambda values, own: (auc(values[own], values[~own]), precision(values, own))
    each = [(*one(scores[row], held[row]), *one(counts, held[row])) for row in known]
    return Guess(*(float(value) for value in np.mean(each, axis=0)))


def interactions(scores: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> float:
    """AUC of a train item against a held-out item of the same user, mean over users.

    Served scores [U, I]; `train` and `held_out` bool [U, I]. Above one half the model tells what
    it was trained on from what its user likes just as well.
    """
    both = np.flatnonzero(train.any(1) & held_out.any(1))
    return float(
        np.mean([auc(scores[user][train[user]], scores[user][held_out[user]]) for user in both])
    )
