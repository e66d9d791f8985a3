"""The best state of a run at work: lists for users, new ones too, and vectors for other servers."""

from jaxrec.serving.export import export
from jaxrec.serving.model import Model, open_run
from jaxrec.serving.recommendation import recommend, recommend_from_items

__all__ = ["Model", "export", "open_run", "recommend", "recommend_from_items"]
