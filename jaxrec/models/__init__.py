"""Recommender models as functions of plain arrays."""

from jaxrec.models import collaborative

__all__ = ["collaborative"]
