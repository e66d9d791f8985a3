"""jaxrec: federated, sequential and agent-based recommendation in pure functional JAX.

    import jaxrec
    result = jaxrec.train("fedcia", "synthetic", rounds=10)
    result.values["test/NDCG@10"]

`load`, `train`, `sweep`, `recommend`, `compare` and `METHODS` are the front door; everything below
them is arrays in, arrays out.
"""

from jaxrec import data, evaluate, federated, models, ops
from jaxrec.comparison import compare
from jaxrec.data import load, pack, partition, split
from jaxrec.methods import METHODS
from jaxrec.new_users import newcomers, recommend_from_items
from jaxrec.run import Result, reopen, train
from jaxrec.search import sweep
from jaxrec.serve import recommend
from jaxrec.types import Clients, Data, DataError, Dataset, Method, SettingError, Sizes

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Clients",
    "Data",
    "DataError",
    "Dataset",
    "Method",
    "Result",
    "SettingError",
    "Sizes",
    "compare",
    "data",
    "evaluate",
    "federated",
    "load",
    "models",
    "newcomers",
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
