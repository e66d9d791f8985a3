"""The ledger is the product of what a client sends and how many clients sent it."""

import jax.numpy as jnp
import numpy as np

from jaxrec.federated import byte_ledger
from jaxrec.federated.byte_ledger import Ledger, charged, opened
from jaxrec.types import Attendance, Clients, Data, Traffic

TRAFFIC = Traffic(
    up=3, down=5, setup_up=7, setup_down=11, codes_down=13, refresh_up=17, refresh_down=19
)


def test_set_up_and_the_first_codes_go_to_every_client():
    ledger = opened(TRAFFIC, 10)
    assert ledger == Ledger(setup_up=70, setup_down=110, codes_down=130)
    assert (ledger.up, ledger.down, ledger.total) == (70, 240, 310)


def test_rounds_and_refreshes_count_those_that_took_part():
    """Four rounds of 10 clients; 2 and 1 of them refresh in rounds 2 and 4, then all get codes."""
    participants, refreshed = np.array([4, 6, 0, 5]), np.array([0, 2, 0, 1])
    ledger = charged(
        opened(TRAFFIC, 10), TRAFFIC, 10, Attendance(participants, refreshed), rounds=4
    )
    assert ledger == Ledger(
        rounds_up=15 * 3,
        rounds_down=15 * 5,
        setup_up=10 * 7,
        setup_down=10 * 11,
        codes_down=(1 + 2) * 10 * 13,
        refresh_up=3 * 17,
        refresh_down=3 * 19,
    )
    assert ledger.up == 15 * 3 + 10 * 7 + 3 * 17
    assert ledger.down == 15 * 5 + 10 * 11 + 30 * 13 + 3 * 19
    assert ledger.total == ledger.up + ledger.down
    assert all(
        type(value) is float for value in charged(Ledger(), TRAFFIC, 10, Attendance(1, 1), 1)
    )


def test_counts_beyond_the_integers_of_float32_are_exact():
    participants = np.full(4001, 10_001, np.float32)
    ledger = charged(Ledger(), Traffic(up=1.0), 10_001, Attendance(participants), rounds=4001)
    assert ledger.total == 4001 * 10_001


def test_one_number_stands_for_every_round():
    each = charged(Ledger(), TRAFFIC, 10, Attendance(np.full(3, 8), np.full(3, 2)), rounds=3)
    assert charged(Ledger(), TRAFFIC, 10, Attendance(8, 2), rounds=3) == each


def test_charges_add_up_however_the_rounds_are_cut():
    participants, refreshed = np.arange(7), np.array([0, 3, 0, 0, 1, 0, 2])
    whole = charged(opened(TRAFFIC, 10), TRAFFIC, 10, Attendance(participants, refreshed), rounds=7)
    ledger = opened(TRAFFIC, 10)
    for part in (slice(0, 1), slice(1, 5), slice(5, 7)):
        attendance = Attendance(participants[part], refreshed[part])
        ledger = charged(ledger, TRAFFIC, 10, attendance, rounds=len(participants[part]))
    assert ledger == whole


def test_values_name_totals_and_shares():
    ledger = charged(opened(TRAFFIC, 10), TRAFFIC, 10, Attendance(4, 2), rounds=1)
    assert byte_ledger.values(ledger, TRAFFIC, 10) == {
        "bytes/up_per_client_round": 3,
        "bytes/down_per_client_round": 5,
        "bytes/setup_per_client": 7 + 11,
        "bytes/per_client": (4 * 8 + 10 * 18 + 2 * 10 * 13 + 2 * 36) / 10,
        "bytes/total": 4 * 8 + 10 * 18 + 2 * 10 * 13 + 2 * 36,
        "bytes/up_total": 4 * 3 + 10 * 7 + 2 * 17,
        "bytes/down_total": 4 * 5 + 10 * 11 + 2 * 10 * 13 + 2 * 19,
        "bytes/setup_total": 10 * 18,
        "bytes/codes_total": 2 * 10 * 13,
        "bytes/refresh_total": 2 * 36,
    }


def test_without_attendance_every_client_is_in_every_round():
    everyone = charged(Ledger(), TRAFFIC, 10, Attendance(np.full(3, 10)), rounds=3)
    assert charged(Ledger(), TRAFFIC, 10, None, rounds=3) == everyone


def test_padding_clients_are_no_members():
    bucket = lambda *weight: Clients(*[None] * 5, weight=jnp.array(weight))
    assert byte_ledger.members(Data((bucket(3.0, 1.0), bucket(8.0, 0.0, 0.0)))) == 3
