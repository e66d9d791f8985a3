"""The best state of a run at work: lists for users, new ones too, and vectors for other servers."""

from jaxrec.serving.export import export
from jaxrec.serving.newcomers import newcomers, recommend_from_items
from jaxrec.serving.recommendation import recommend, recommend_in_blocks

__all__ = ["export", "newcomers", "recommend", "recommend_from_items", "recommend_in_blocks"]
