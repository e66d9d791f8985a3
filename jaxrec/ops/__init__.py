"""Functions on arrays, without state, that several methods use."""

from jaxrec.ops import fold_in, linalg, losses, quantize, ranking

__all__ = ["fold_in", "linalg", "losses", "quantize", "ranking"]
