"""Secure aggregation: a server learns the sum of its clients' integer vectors, and no vector.

    terms -> client, server (four stages of messages) -> rounds (in memory) | sockets (processes)

The protocol is that of Bonawitz et al. (CCS 2017) on the sparse graph of Bell et al. (CCS 2020).
A client hides its vector under one mask of its own and one for each neighbour, which the neighbour
subtracts; shares of what makes the masks lie with the neighbours, so that the server can take off
those of clients that dropped out. It protects against a server that follows the protocol and is
curious, together with fewer than `threshold` of any client's neighbours.
"""

from jaxrec.federated.secure_aggregation.messages import Bytes, protocol_bytes
from jaxrec.federated.secure_aggregation.rounds import Outcome, aggregate_in_process
from jaxrec.federated.secure_aggregation.terms import ProtocolError, Terms, agree

__all__ = [
    "Bytes",
    "Outcome",
    "ProtocolError",
    "Terms",
    "aggregate_in_process",
    "agree",
    "protocol_bytes",
]
