"""Histories as rows of one length that short sequences share: hardly any padding.

Half of all users of a typical shop have six items or fewer; one row each would leave nine places
of ten empty. Sequences are laid into a row one after another, whole, and a new row begins where the
next one does not fit. Which users share a row follows from an order that the caller draws.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.mesh import divide
from jaxrec.types import History


class Rows(NamedTuple):
    """Places of rows, filled from the left; those behind the sequences are padding.

    A batch of them is a slice of the first axis.
    """

    item: jax.Array  # int32 [B, L], I for padding
    target: jax.Array  # int32 [B, L]  the user's next item in the history, I where there is none
    position: jax.Array  # int32 [B, L]  place within the sequence
    user: jax.Array  # int32 [B, L], U for padding

    def batch(self, number: jax.Array, size: int) -> Rows:
        """Rows `number * size` to `(number + 1) * size`, divided over a mesh of that axis."""
        cut = lambda array: jax.lax.dynamic_slice_in_dim(array, number * size, size)
        return divide(Rows(*map(cut, self)), "batch")


def newest_spans(history: History, length: int, *, ahead: int) -> tuple[jax.Array, jax.Array]:
    """First row and number, int32 [U], of a user's newest `length` items but the last `ahead`."""
    counts = jnp.clip(jnp.diff(history.start) - ahead, 0, length)
    return history.start[1:] - ahead - counts, counts


def most_rows(history: History, length: int) -> int:
    """How many rows `fill_rows` may need: of two rows in a row, the sequences overflow one."""
    users = len(history.start) - 1
    return 2 * (-(-min(len(history.item), users * length) // length)) + 1


def fill_rows(
    history: History, order: jax.Array, *, items: int, length: int, ahead: int, multiple: int = 1
) -> tuple[Rows, jax.Array]:
    """Each user's newest `length` items, but for the last `ahead` ones, laid into rows.

    Args:
      history: of U users.
      order: int32 [U], users in the order in which they are laid.
      items: I.
      length: L of the rows, and the most items of a sequence.
      ahead: 1 to leave out each user's last item, which has no next one; 0 to keep all.
      multiple: the number of rows is padded to a multiple of it, for batches of that size.

    Returns:
      (rows [B, L], int32 [] how many of the B rows hold anything).
    """
    users, total = len(order), len(history.item)
    size = -(-most_rows(history, length) // multiple) * multiple
    first, counts = newest_spans(history, length, ahead=ahead)

    laid_counts = counts[order]
    before = jnp.cumsum(laid_counts) - laid_counts
    begins = _row_begins(laid_counts, length)
    row = jnp.cumsum(begins) - 1
    first_of_row = jax.lax.cummax(jnp.where(begins, before, 0))
    place = row * length + before - first_of_row
    begin = jnp.zeros(users, jnp.int32).at[order].set(place)

    at = jnp.arange(total, dtype=jnp.int32)
    within = at - first[history.user]
    laid = (within >= 0) & (within < counts[history.user])
    slot = jnp.where(laid, begin[history.user] + within, size * length)
    source = jnp.full(size * length, total, jnp.int32).at[slot].set(at, mode="drop")

    padded = lambda array, fill: jnp.append(array, jnp.int32([fill]))
    item, user = padded(history.item, items), padded(history.user, users)
    following = padded(history.item[1:], items)
    same = padded(history.user[1:], users) == history.user
    target = padded(jnp.where(same, following[:total], items), items)
    position = padded(within, 0)
    rows = Rows(*(array[source].reshape(size, length) for array in (item, target, position, user)))
    return rows, jnp.where(jnp.any(counts > 0), row[-1] + 1, 0)


def _row_begins(counts: jax.Array, length: int) -> jax.Array:
    """Which of the sequences, of `counts` int32 [U] from 0 to `length`, begins a row: bool [U].

    Who begins the next row after a sequence that begins one is known for all of them at once; the
    first begins one, and so does whoever follows in 1, 2, 4, ... steps those that are known to.
    """
    users, total = len(counts), jnp.cumsum(counts)
    following = jnp.searchsorted(total, total - counts + length, side="right").astype(jnp.int32)

    def double(_, carry):
        begins, jump = carry
        return begins.at[jump].max(begins), jump[jump]

    begins = jnp.zeros(users + 1, bool).at[0].set(True)
    jump = jnp.append(following, users)
    return jax.lax.fori_loop(0, users.bit_length(), double, (begins, jump))[0][:-1]
