"""AgentCF++: user and item agents with memories that learn from each other (arXiv 2502.13843).

There are two engines of one algorithm. In `vector_engine` memories are vectors: agents live
(`life`) through events (`events`), each of which is one `interaction`; those that share nothing run
at once (`schedule`), users of like memories form interest `groups`, and a `ranking` weighs what all
of them remember. In `text_engine` memories are text and a language model thinks.
"""

from jaxrec.methods.agentcf.config import Config
from jaxrec.methods.agentcf.state import Metrics, State
from jaxrec.methods.agentcf.vector_engine import TRAITS, make

__all__ = ["TRAITS", "Config", "Metrics", "State", "make"]
