"""How many rows the buckets hold: each bucket of clients is padded to a length of its own.

A program repeats its work on clients for each bucket, so that few buckets compile soon, and many
waste little on padding. What costs least lies between: more buckets for more rows.
"""

from __future__ import annotations

import numpy as np

POWERS_OF_TWO = tuple(2**n for n in range(31))  # the lengths in runs of older versions
# A bucket costs as much as so many cells, or as this part of all rows if that is more. A place for
# a user, whose vector is solved for, costs as much as so many cells.
CELLS, SHARE, USER = 2**15, 0.15, 64


def best_lengths(sizes: np.ndarray, users: np.ndarray) -> tuple[int, ...]:
    """The lengths of buckets, ascending, for clients with `sizes` rows [C] of `users` users [C].

    A client lies in the first bucket that is long enough, and all clients of a bucket have as many
    places for users. Of all choices this one has the fewest cells and places, padding included,
    plus what its buckets cost. Lengths have at most four binary digits that count, which pads by an
    eighth at most and leaves few to choose from.
    """
    sizes = np.maximum(sizes, 1)
    unit = 2 ** np.maximum(np.frexp(sizes - 0.5)[1] - 4, 0)
    lengths, place, clients = np.unique(
        -(-sizes // unit) * unit, return_inverse=True, return_counts=True
    )
    places = np.zeros(len(lengths), int)
    np.maximum.at(places, place, users)
    below = np.cumsum([0, *clients])  # clients that are shorter than each length
    bucket = max(CELLS, SHARE * sizes.sum())
    least, before = np.zeros(len(below)), np.zeros(len(below), int)
    for end, length in enumerate(lengths, 1):  # the last bucket ends here
        most = np.maximum.accumulate(places[:end][::-1])[::-1]
        costs = least[:end] + (below[end] - below[:end]) * (length + USER * most) + bucket
        before[end] = np.argmin(costs)
        least[end] = costs[before[end]]
    chosen, end = [], len(lengths)
    while end:
        chosen.append(int(lengths[end - 1]))
        end = before[end]
    return tuple(reversed(chosen))
