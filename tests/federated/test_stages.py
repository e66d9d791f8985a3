"""A step that is cut at its sums is the step: on one machine, and on several that exchange sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.federated.divided import (
    Federation,
    number_of_clients,
    number_of_users,
    repeat,
    sum_over_clients,
)
from jaxrec.federated.stages import cut
from jaxrec.types import SettingError

THREE = Federation(3, 30)
ROWS = np.arange(12.0, dtype=np.float32).reshape(3, 4) / 10  # of three clients


def power(rows, key):
    """Three turns of a sum over clients, and what each client has of its own."""
    total = sum_over_clients(rows.sum(0))
    number, largest = sum_over_clients(
        {"rows": jnp.float32(len(rows)), "squares": jnp.sum(rows**2)}
    ).values()
    noise = jax.random.normal(key, total.shape)

    def turn(number, vector):
        return sum_over_clients(rows.T @ (rows @ vector)) / largest + number

    vector = repeat(0, 3, turn, total + noise)
    return vector, {"mine": rows + 1, "number": number, "three": 3}


def on_machines(function, parts, *args):
    """The results of parties, each with its part of the rows, that add up what they send."""
    stages = cut(function, THREE, parts[0], *args)
    parties = [stages.begin(part, *args) for part in parts]
    exchanges = 0
    while parties[0].parts:
        sent = [party.parts for party in parties]
        assert [array.shape for array in sent[0]] == [shape.shape for shape in parties[0].due]
        totals = [np.sum(each, axis=0, dtype=each[0].dtype) for each in zip(*sent, strict=True)]
        parties = [party.go_on(totals) for party in parties]
        exchanges += 1
    return stages, [party.results for party in parties], exchanges


def test_parties_that_exchange_sums_get_what_one_machine_gets():
    key = jax.random.key(0)
    whole, own = power(ROWS, key)
    stages, results, exchanges = on_machines(power, [ROWS[:1], ROWS[1:2], ROWS[2:]], key)
    assert exchanges == 1 + 3  # sums that do not depend on each other go together
    assert [len(shapes) for shapes in stages.sums] == [3, 1, 1, 1]
    for vector, mine in results:
        np.testing.assert_allclose(vector, whole, rtol=1e-5)
        assert (mine["number"], mine["three"]) == (own["number"], 3)
    np.testing.assert_array_equal(
        np.concatenate([mine["mine"] for _, mine in results]), own["mine"]
    )


def test_a_party_without_rows_gets_the_same_results():
    key = jax.random.key(0)
    nobody = np.zeros((1, 4), np.float32)
    parts = [nobody, *np.split(ROWS, 3)]
    _, results, _ = on_machines(lambda rows, key: power(rows, key)[0], parts, key)
    np.testing.assert_allclose(results[0], power(ROWS, key)[0], rtol=1e-5)


def test_results_are_known_as_soon_as_the_sums_that_they_need():
    args = ROWS, jax.random.key(0)
    stages = cut(power, THREE, *args, wanted=lambda result: result[1]["mine"])
    party = stages.begin(ROWS, jax.random.key(0))
    assert party.done
    np.testing.assert_array_equal(party.results, ROWS + 1)
    assert len(stages.sums) == 4  # others still wait for this party's parts
    later = cut(power, THREE, *args, wanted=lambda result: result[0])
    with pytest.raises(ValueError, match="need 4 sums, not 0"):
        _ = later.begin(ROWS, jax.random.key(0)).results


def test_a_function_without_sums_is_one_stage():
    stages, results, exchanges = on_machines(lambda rows: rows * 2, [ROWS])
    assert (len(stages.stages), exchanges) == (1, 0)
    np.testing.assert_array_equal(results[0], ROWS * 2)


def test_a_simulation_knows_no_other_machines():
    traced = str(jax.make_jaxpr(power)(ROWS, jax.random.key(0)))
    assert "sum_over_clients" not in traced
    assert (number_of_clients(5), number_of_users(7)) == (5, 7)
    _, results, _ = on_machines(lambda rows: (number_of_clients(5), number_of_users(7)), [ROWS])
    assert results[0] == THREE


def test_sums_of_another_shape_are_refused():
    stages = cut(lambda rows: sum_over_clients(rows.sum()), THREE, ROWS)
    party = stages.begin(ROWS)
    with pytest.raises(ValueError, match=r"the sums are float32\[2\], and float32\[\] are due"):
        party.go_on([np.zeros(2, np.float32)])
    with pytest.raises(ValueError, match=r"the arguments are float32\[2\]"):
        stages.begin(np.zeros(2, np.float32))


@pytest.mark.parametrize("inside", ["cond", "scan"])
def test_a_sum_that_no_machine_can_reach_alone_is_refused(inside):
    def function(rows):
        add = lambda carry, row: (sum_over_clients(carry + row.sum()), None)
        if inside == "scan":
            return jax.lax.scan(add, 0.0, rows)[0]
        return jax.lax.cond(rows[0, 0] > 0, sum_over_clients, jnp.negative, rows.sum())

    with pytest.raises(SettingError, match=f"stands inside of {inside}"):
        cut(function, THREE, ROWS)


def test_sums_that_no_party_needs_are_not_sent():
    def function(rows):
        needed, idle = sum_over_clients((rows.sum(), rows.max()))
        return needed, idle * 0 + rows[0]

    whole = cut(function, THREE, ROWS)
    assert [len(shapes) for shapes in whole.sums] == [2]
    mine = cut(lambda rows: function(rows)[0], THREE, ROWS)
    assert [len(shapes) for shapes in mine.sums] == [1]
    node = cut(function, THREE, ROWS, wanted=lambda result: result[0])
    assert node.sums == whole.sums  # for another party may need it
