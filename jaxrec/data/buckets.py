"""How many rows the buckets hold: each bucket of clients is padded to a length of its own.

A program has one body for each bucket, so that few buckets compile soon, and many waste little on
padding. What costs least lies between: more buckets for more rows.
"""

from __future__ import annotations

import numpy as np

POWERS_OF_TWO = tuple(2**n for n in range(31))  # the lengths in runs of older versions
# A bucket costs as much as so many cells of padding, or as this part of all rows if that is more.
CELLS, SHARE = 2**15, 0.15


def best_lengths(sizes: np.ndarray) -> tuple[int, ...]:
    """The lengths of buckets, ascending, for clients with `sizes` rows [C].

    A client lies in the first bucket that is long enough. Of all choices this one has the fewest
    cells, padding included, plus what its buckets cost. Lengths have at most four binary digits
    that count, which pads by an eighth at most and leaves few to choose from.
    """
    sizes = np.maximum(sizes, 1)
    unit = 2 ** np.maximum(np.frexp(sizes - 0.5)[1] - 4, 0)
    lengths, clients = np.unique(-(-sizes // unit) * unit, return_counts=True)
    below = np.cumsum([0, *clients])  # clients that are shorter than each length
    bucket = max(CELLS, SHARE * sizes.sum())
    least, before = np.zeros(len(below)), np.zeros(len(below), int)
    for end, length in enumerate(lengths, 1):  # the last bucket ends here
        costs = least[:end] + length * (below[end] - below[:end]) + bucket
        before[end] = np.argmin(costs)
        least[end] = costs[before[end]]
    chosen, end = [], len(lengths)
    while end:
        chosen.append(int(lengths[end - 1]))
        end = before[end]
    return tuple(reversed(chosen))
