"""What a secure sum costs beside its numbers: keys, shares of secrets, and who is there.

A method states in `Traffic` the numbers that a client sends and gets. Where the server may see sums
alone, each sum is a run of the protocol, and its other messages are added here.
"""

from __future__ import annotations

import math

from jaxrec.federated import secure_sum
from jaxrec.federated.privacy import PrivacyConfig
from jaxrec.federated.secure_aggregation.messages import packed_size, protocol_bytes
from jaxrec.federated.secure_aggregation.terms import degree
from jaxrec.types import Traffic

COLLUDING = DROPPING = 0.1  # fractions of the clients that the protocol withstands


def protocol_overhead(clients: int) -> tuple[float, float]:
    """Bytes up and down of a secure sum over so many clients, for each, but for its numbers."""
    if clients < 2:
        return 0.0, 0.0
    neighbours, _ = degree(clients, COLLUDING, DROPPING)
    bits = 8
    up, down = protocol_bytes(clients, neighbours, 1, bits)
    return float(up - packed_size(1, bits)), float(down)


def with_protocol(
    config: PrivacyConfig, traffic: Traffic, clients: int, *, cohort: float = 1.0, setup: int = 0
) -> Traffic:
    """A method's traffic with the protocol's own messages where sums are secure.

    Args:
      clients: of the federation.
      cohort: the part of them that is in a round.
      setup: secure sums before the first round, over all clients.
    """
    if config.privacy in ("plain", "central_dp"):
        return traffic
    up, down = protocol_overhead(math.ceil(cohort * clients))
    once_up, once_down = protocol_overhead(clients)
    return traffic._replace(
        up=traffic.up + up * bool(traffic.up),
        down=traffic.down + down * bool(traffic.up),
        setup_up=traffic.setup_up + setup * once_up,
        setup_down=traffic.setup_down + setup * once_down,
        refresh_up=traffic.refresh_up + up * bool(traffic.refresh_up),
        refresh_down=traffic.refresh_down + down * bool(traffic.refresh_up),
    )


def masked_bytes(numbers: int, addends: int, bits: int) -> float:
    """Bytes of a vector of integers of `bits`, masked modulo a number above any sum of them."""
    most = secure_sum.headroom(addends, bits)
    return float(packed_size(numbers, secure_sum.sum_bits(addends, most)))
