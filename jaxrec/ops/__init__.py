"""Pure functions on arrays, without state: losses, similarities, quantiser, fold-in, ranking."""

from jaxrec.ops import fold_in, linalg, losses, quantize, ranking, similarity

__all__ = [
    "fold_in",
    "linalg",
    "losses",
    "quantize",
    "ranking",
    "similarity",
]
