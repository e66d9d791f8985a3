"""What does not fit the device is refused before its first round, with numbers and a setting."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxrec import room
from jaxrec.data.synthetic import synthetic
from jaxrec.run import train
from jaxrec.types import SettingError

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture(scope="module")
def dataset():
    return synthetic(users=60, items=40, clients=20, length=16)


def fit(dataset, name="toy", **settings):
    return train(name, dataset, progress=False, rounds=2, baselines=(), **settings)


def test_bytes_are_those_of_each_array_once():
    array, described = jnp.zeros((3, 5)), jax.ShapeDtypeStruct((7,), jnp.int8)
    assert room.held({"a": array, "b": [array]}, described) == 3 * 5 * 4 + 7


def test_a_host_knows_what_it_has():
    assert room.limit() * jax.local_device_count() > 2**28


def test_a_container_has_less_than_its_host(monkeypatch, tmp_path):
    most = tmp_path / "memory.max"
    monkeypatch.setattr(room, "CONTAINER", most)
    most.write_text("max\n")
    assert room.limit() * jax.local_device_count() > 2**20
    most.write_text(f"{2**20}\n")
    assert room.limit() == 2**20 // jax.local_device_count()


@pytest.mark.parametrize("number", [0, 999, 1_000, 123_456_789, 5 * 10**10, 4 * 10**15])
def test_sizes_are_told_in_three_digits(number):
    shown = {0: "0 bytes", 999: "999 bytes", 1_000: "1 kB", 123_456_789: "123 MB"}
    shown |= {5 * 10**10: "50 GB", 4 * 10**15: "4e+03 TB"}
    assert room._size(number) == shown[number]


def test_a_state_that_does_not_fit_is_refused_with_a_width_that_does(dataset, monkeypatch):
    monkeypatch.setattr(room, "limit", lambda: 2_000_000)
    fit(dataset)
    with pytest.raises(SettingError) as error:
        fit(dataset, width=8_000)
    assert re.search(r"toy: needs .* \(data .*, state .*\), more than the 2 MB", str(error.value))
    assert "With width = 1000 it takes" in str(error.value)


def test_a_rounds_work_that_does_not_fit_is_refused_with_a_setting_that_does(dataset, monkeypatch):
    config = {"width": 16}
    seen = []
    monkeypatch.setattr(room, "check", lambda name, parts, *rest: seen.append(parts))
    fit(dataset, "fedavg", **config)
    monkeypatch.undo()
    before, program = seen
    assert set(before) == {"data", "state"}
    assert set(program) == {"data", "state", "a round's work"}
    assert program["state"] == before["state"]
    needed = sum(program.values())
    monkeypatch.setattr(room, "limit", lambda: needed)
    values = fit(dataset, "fedavg", **config).values  # what just fits is not refused
    assert values["rounds"] == 2
    monkeypatch.setattr(room, "limit", lambda: needed - 1)
    with pytest.raises(SettingError) as error:
        fit(dataset, "fedavg", **config)
    block = int(re.search(r"With block = (\d+) it takes", str(error.value))[1])
    assert "a round's work" in str(error.value)
    fit(dataset, "fedavg", block=block, **config)


def test_where_no_setting_helps_it_says_so(dataset, monkeypatch):
    monkeypatch.setattr(room, "limit", lambda: 100)
    with pytest.raises(SettingError, match="No setting of the method alone makes it fit"):
        fit(dataset)


def test_where_nobody_knows_the_limit_nothing_is_refused(dataset, monkeypatch):
    monkeypatch.setattr(room, "limit", lambda: None)
    fit(dataset)
