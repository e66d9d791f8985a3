"""RQFedRec: clients and server exchange codebooks instead of item tables (arXiv 2601.18570).

`config` has the settings, `codes` says which codes items get and where the codebooks start,
`client` and `server` who does what in a round, and `method` puts them together.
"""

from jaxrec.methods.rqfedrec.config import Config
from jaxrec.methods.rqfedrec.method import TRAITS, make
from jaxrec.methods.rqfedrec.state import Metrics, State

__all__ = ["TRAITS", "Config", "Metrics", "State", "make"]
