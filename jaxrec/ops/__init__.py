"""Functions on arrays, without state: losses, similarities, quantiser, fold-in, ranking, waves."""

from jaxrec.ops import fold_in, linalg, losses, quantize, ranking, schedule, similarity

__all__ = [
    "fold_in",
    "linalg",
    "losses",
    "quantize",
    "ranking",
    "schedule",
    "similarity",
]
