"""FedCIA: clients share item similarities, never embeddings (Han et al., SIGIR 2025).

`config` has the settings. `method` has the rounds of clients that train, matrix factorisation and
LightGCN, `client` what one of them does, and `linear` the models that have no parameters, GF-CF and
EASE. `similarity` works on item similarities that are never whole.
"""

from jaxrec.methods.fedcia.config import Config
from jaxrec.methods.fedcia.method import TRAITS, make
from jaxrec.methods.fedcia.state import Metrics, State

__all__ = ["TRAITS", "Config", "Metrics", "State", "make"]
