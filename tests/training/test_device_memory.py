"""What does not fit the device is refused before its first round, with numbers and a setting."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from jaxrec.data.synthetic import synthetic
from jaxrec.methods import METHODS
from jaxrec.training import device_memory
from jaxrec.training.run import train
from jaxrec.types import SettingError, Traits

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture(scope="module")
def dataset():
    return synthetic(users=60, items=40, clients=20, length=16)


def fit(dataset, name="toy", **settings):
    return train(name, dataset, progress=False, rounds=2, baselines=(), **settings)


def test_bytes_are_those_of_each_array_once():
    array, described = jnp.zeros((3, 5)), jax.ShapeDtypeStruct((7,), jnp.int8)
    assert device_memory.held({"a": array, "b": [array]}, described) == 3 * 5 * 4 + 7


def test_a_host_knows_what_it_has():
    assert device_memory.limit() * jax.local_device_count() > 2**28


def test_a_container_has_less_than_its_host(monkeypatch, tmp_path):
    most = tmp_path / "memory.max"
    monkeypatch.setattr(device_memory, "CONTAINER", most)
    most.write_text("max\n")
    assert device_memory.limit() * jax.local_device_count() > 2**20
    most.write_text(f"{2**20}\n")
    assert device_memory.limit() == 2**20 // jax.local_device_count()


@pytest.mark.parametrize("number", [0, 999, 1_000, 123_456_789, 5 * 10**10, 4 * 10**15])
def test_sizes_are_told_in_three_digits(number):
    shown = {0: "0 bytes", 999: "999 bytes", 1_000: "1 kB", 123_456_789: "123 MB"}
    shown |= {5 * 10**10: "50 GB", 4 * 10**15: "4e+03 TB"}
    assert device_memory._size(number) == shown[number]


def test_a_state_that_does_not_fit_is_refused_with_a_width_that_does(dataset, monkeypatch):
    monkeypatch.setattr(device_memory, "limit", lambda: 2_000_000)
    fit(dataset)
    with pytest.raises(SettingError) as error:
        fit(dataset, width=8_000)
    assert re.search(r"toy: needs .* \(data .*, state .*\), more than the 2 MB", str(error.value))
    assert "With width = 1000 it takes" in str(error.value)


def test_a_rounds_work_that_does_not_fit_is_refused_with_a_setting_that_does(dataset, monkeypatch):
    config = {"width": 16}
    seen = []
    monkeypatch.setattr(device_memory, "check", lambda name, parts, *rest: seen.append(parts))
    fit(dataset, "fedavg", hold_test=True, **config)
    monkeypatch.undo()
    before, program = seen
    assert set(before) == {"data", "state"}
    assert set(program) == {"data", "state", "a round's work"}
    assert program["state"] == before["state"]
    needed = sum(program.values())
    monkeypatch.setattr(device_memory, "limit", lambda: needed)
    values = fit(dataset, "fedavg", **config).values  # what just fits is not refused
    assert values["rounds"] == 2
    monkeypatch.setattr(device_memory, "limit", lambda: needed - 1)
    with pytest.raises(SettingError) as error:
        fit(dataset, "fedavg", **config)
    block = int(re.search(r"With block = (\d+) it takes", str(error.value))[1])
    assert "a round's work" in str(error.value)
    fit(dataset, "fedavg", block=block, hold_test=True, **config)


def test_where_no_setting_helps_it_says_so(dataset, monkeypatch):
    monkeypatch.setattr(device_memory, "limit", lambda: 100)
    with pytest.raises(SettingError, match="No setting of the method alone makes it fit"):
        fit(dataset)


def test_where_nobody_knows_the_limit_nothing_is_refused(dataset, monkeypatch):
    monkeypatch.setattr(device_memory, "limit", lambda: None)
    fit(dataset)


def test_a_baseline_that_does_not_fit_is_refused_before_the_method_trains(dataset, monkeypatch):
    seen = []
    monkeypatch.setattr(device_memory, "limit", lambda: 500_000)  # local_only keeps 20 item tables
    track = lambda name, row: seen.append(name)
    message = r"^local_only: needs .*; or leave local_only out of baselines$"
    with pytest.raises(SettingError, match=message):
        train("toy", dataset, progress=False, rounds=2, baselines=("local_only",), track=track)
    assert seen == []


def test_what_a_method_names_is_tried_before_its_numbers_are_made_smaller(toy, monkeypatch):
    sizes = {8: 1000, 5: 100, 3: 10}
    monkeypatch.setattr(device_memory, "limit", lambda: 150)
    monkeypatch.setattr(toy, "TRAITS", Traits(smaller=({"width": 5}, {"width": 3})))
    again = lambda config: sizes.get(config.width, 1000)
    with pytest.raises(
        SettingError, match=r"more than the 150 bytes .* With width = 5 it takes 100"
    ):
        device_memory.check("toy", {"state": 1000}, toy.Config(), 3, again)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_names_to_take_less_memory_are_settings_it_has(method):
    for settings in METHODS[method].TRAITS.smaller:
        assert dataclasses.replace(METHODS[method].Config(), **settings)


@pytest.mark.slow
def test_clients_that_keep_large_tables_are_told_to_rebuild_them(dataset, monkeypatch):
    def needed(**settings):
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(device_memory, "check", lambda name, parts, *rest: seen.append(parts))
            fit(dataset, "fedcia", width=64, rank=8, **settings)
        return max(sum(parts.values()) for parts in seen)

    rebuilt = dict(METHODS["fedcia"].TRAITS.smaller[0])
    kept, less = needed(), needed(**rebuilt)
    assert less < kept
    monkeypatch.setattr(device_memory, "limit", lambda: less)
    with pytest.raises(SettingError, match=r"With tables = 'rebuilt', upload = 'sketch', block = "):
        fit(dataset, "fedcia", width=64, rank=8)
