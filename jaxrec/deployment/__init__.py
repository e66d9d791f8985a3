"""A federation whose clients are on machines of their own.

    messages, vectors -> party -> node (a client's machine), coordinator (the server's) -> flower

Every party runs the same step of the same method, cut at its sums over all clients
(`federated.stages`). A node computes its part of each sum on rows that never leave it; the
coordinator adds the parts up, or sees only their sum by `federated.secure_aggregation`, and goes on
without any rows. Both are functions of bytes to bytes, so that any transport carries them; `flower`
is one.
"""

from jaxrec.deployment.coordinator import Coordinator
from jaxrec.deployment.node import Limits, Node
from jaxrec.deployment.terms import Terms

__all__ = ["Coordinator", "Limits", "Node", "Terms"]
