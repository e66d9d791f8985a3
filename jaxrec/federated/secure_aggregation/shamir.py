"""Shamir's secret sharing: any `threshold` shares give the secret back, fewer tell nothing.

A secret is the value at 0 of a random polynomial of degree threshold - 1 over the integers modulo
PRIME, a share its value elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

PRIME = 2**256 + 297  # the least above all 32-byte secrets
SHARE = 33  # bytes
_DRAWN = 48  # bytes of a random coefficient: its bias is below 2^-127


def split(
    secret: bytes, threshold: int, points: Iterable[int], entropy: Callable[[int], bytes]
) -> dict[int, int]:
    """The share of a secret of at most 32 bytes at each point, which must differ and be above 0."""
    drawn = entropy(_DRAWN * (threshold - 1))
    pieces = [drawn[at : at + _DRAWN] for at in range(0, len(drawn), _DRAWN)]
    coefficients = [int.from_bytes(piece, "little") % PRIME for piece in pieces]
    shares = {}
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * point % PRIME
        shares[point] = (value + int.from_bytes(secret, "little")) % PRIME
    return shares


def join(shares: Mapping[int, int], size: int = 32) -> bytes:
    """The secret of `size` bytes from `threshold` shares by their points, by Lagrange's formula.

    Raises OverflowError where wrong shares give more than fits.
    """
    above, below = 0, 1  # a sum of fractions, because one division takes long
    for point, share in shares.items():
        weight = point * math.prod(other - point for other in shares if other != point)
        above = (above * weight + share * below) % PRIME
        below = below * weight % PRIME
    secret = math.prod(shares) * above * pow(below, -1, PRIME) % PRIME
    return secret.to_bytes(size, "little")
