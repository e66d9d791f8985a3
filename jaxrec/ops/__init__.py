"""Functions on arrays, without state: losses, distillation, similarities, quantiser, ranking..."""

from jaxrec.ops import distill, fold_in, linalg, losses, quantize, ranking, schedule, similarity

__all__ = [
    "distill",
    "fold_in",
    "linalg",
    "losses",
    "quantize",
    "ranking",
    "schedule",
    "similarity",
]
