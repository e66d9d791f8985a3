"""LLMD4Rec: a sequential recommender and a language model teach each other (arXiv 2505.18120).

`config` has the settings, `language` the language model, `distill` the loss of both, `epoch` one
epoch of a model beside a teacher, `phases` who learns when, and `method` the method itself.
"""

from jaxrec.methods.llmd4rec.config import Config
from jaxrec.methods.llmd4rec.epoch import Metrics
from jaxrec.methods.llmd4rec.method import TRAITS, make
from jaxrec.methods.llmd4rec.phases import State

__all__ = ["TRAITS", "Config", "Metrics", "State", "make"]
