"""Pure functions on arrays, without state: losses, similarities, decompositions, ranking."""

from jaxrec.ops import linalg, losses, ranking, similarity

__all__ = ["linalg", "losses", "ranking", "similarity"]
