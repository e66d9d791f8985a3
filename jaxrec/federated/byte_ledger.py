"""The ledger: every byte a federation sends, by direction and by purpose.

    opened (set-up, code tables) -> charged (rounds, refreshes)* -> values

A method states in `Traffic` what one client sends and receives, and in `Attendance` how many
clients took part; the ledger multiplies and adds, in Python floats. Left out are single numbers
that ride along with any message: a client's weight, its metrics, the number of the round.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxrec.types import Attendance, Data, Traffic


class Ledger(NamedTuple):
    """Bytes of the whole federation since the start. Up is from the clients to the server."""

    rounds_up: float = 0.0
    rounds_down: float = 0.0
    setup_up: float = 0.0
    setup_down: float = 0.0
    codes_down: float = 0.0
    refresh_up: float = 0.0
    refresh_down: float = 0.0

    @property
    def up(self) -> float:
        return self.rounds_up + self.setup_up + self.refresh_up

    @property
    def down(self) -> float:
        return self.rounds_down + self.setup_down + self.codes_down + self.refresh_down

    @property
    def total(self) -> float:
        return self.up + self.down


def members(data: Data) -> int:
    """Clients of the federation: those that have interactions, padding left out."""
    return sum(int((bucket.weight > 0).sum()) for bucket in data.clients)


def opened(traffic: Traffic, clients: int) -> Ledger:
    """The ledger before the first round: set-up and the first code table, with every client."""
    return Ledger(
        setup_up=clients * traffic.setup_up,
        setup_down=clients * traffic.setup_down,
        codes_down=clients * traffic.codes_down,
    )


def charged(
    ledger: Ledger, traffic: Traffic, clients: int, attendance: Attendance | None, rounds: int
) -> Ledger:
    """The ledger `rounds` rounds later.

    Args:
      attendance: its numbers are of each round, [rounds], or one for all of them; None: all
        `clients` in every round. After a refresh all clients get the new code table.
    """
    attendance = Attendance(clients) if attendance is None else attendance
    present, refreshing = (np.broadcast_to(each, rounds) for each in attendance)
    presences, refreshes = float(present.sum(dtype=float)), float(refreshing.sum(dtype=float))
    return ledger._replace(
        rounds_up=ledger.rounds_up + presences * traffic.up,
        rounds_down=ledger.rounds_down + presences * traffic.down,
        codes_down=ledger.codes_down + int((refreshing > 0).sum()) * clients * traffic.codes_down,
        refresh_up=ledger.refresh_up + refreshes * traffic.refresh_up,
        refresh_down=ledger.refresh_down + refreshes * traffic.refresh_down,
    )


def averaged(ledger: Ledger, clients: int, rounds: int) -> Traffic:
    """What a client has sent and got on average, in each of so many rounds and in the set-up."""
    each = max(1, clients * rounds)
    up, down = ledger.rounds_up / each, ledger.rounds_down / each
    return Traffic(up, down, ledger.setup_up / clients, ledger.setup_down / clients)


def values(ledger: Ledger, traffic: Traffic, clients: int) -> dict[str, float]:
    """The bytes in result.json. Set-up, codes and refreshes are parts of up and down."""
    return {
        "bytes/up_per_client_round": traffic.up,
        "bytes/down_per_client_round": traffic.down,
        "bytes/setup_per_client": traffic.setup_up + traffic.setup_down,
        "bytes/per_client": ledger.total / clients,
        "bytes/total": ledger.total,
        "bytes/up_total": ledger.up,
        "bytes/down_total": ledger.down,
        "bytes/setup_total": ledger.setup_up + ledger.setup_down,
        "bytes/codes_total": ledger.codes_down,
        "bytes/refresh_total": ledger.refresh_up + ledger.refresh_down,
    }
