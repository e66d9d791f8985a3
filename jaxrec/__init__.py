"""jaxrec: federated, sequential and agent-based recommendation in pure functional JAX.

    import jaxrec
    result = jaxrec.train("fedcia", "synthetic", rounds=10)
    result.values["test/NDCG@10"]

`load`, `train`, `sweep`, `recommend`, `compare` and `METHODS` are the front door; everything below
them is arrays in, arrays out.
"""

from jaxrec import data, evaluation, federated, models, ops
from jaxrec.data import load, pack, partition, split
from jaxrec.methods import METHODS
from jaxrec.models.kinds import CLIENT_MODELS, ITEM_ENCODERS
from jaxrec.report.comparison import compare
from jaxrec.search.sweep import sweep
from jaxrec.serving.export import export
from jaxrec.serving.model import Model
from jaxrec.serving.model import open_run as open
from jaxrec.serving.recommendation import recommend, recommend_from_items
from jaxrec.training.opening import reopen
from jaxrec.training.run import Result, train
from jaxrec.types import (
    Clients,
    Data,
    DataError,
    Dataset,
    Method,
    SettingError,
    Sizes,
    Traits,
    Unavailable,
)
from jaxrec.version import __version__

__all__ = [
    "CLIENT_MODELS",
    "ITEM_ENCODERS",
    "METHODS",
    "Clients",
    "Data",
    "DataError",
    "Dataset",
    "Method",
    "Model",
    "Result",
    "SettingError",
    "Sizes",
    "Traits",
    "Unavailable",
    "__version__",
    "compare",
    "data",
    "evaluation",
    "export",
    "federated",
    "load",
    "models",
    "open",
    "ops",
    "pack",
    "partition",
    "recommend",
    "recommend_from_items",
    "reopen",
    "split",
    "sweep",
    "train",
]
