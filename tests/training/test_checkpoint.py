"""What is saved comes back bit for bit, and anything else is refused in one line."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.training import checkpoint
from jaxrec.types import CheckpointError

try:
    import resource
except ImportError:  # Windows
    resource = None

IDENTITY = {"method": "m", "settings": "s", "data": "d"}


class Inner(NamedTuple):
    table: jax.Array
    counts: jax.Array


class State(NamedTuple):
    groups: tuple[Inner, ...]
    half: jax.Array
    step: jax.Array
    key: jax.Array
    empty: jax.Array


def state(seed=0, width=4):
    keys = jax.random.split(jax.random.key(seed), 3)
    groups = tuple(
        Inner(jax.random.normal(k, (5, width)), jnp.arange(n)) for n, k in enumerate(keys[:2], 2)
    )
    return State(
        groups, jnp.linspace(0, 1, 7, dtype=jnp.bfloat16), jnp.int32(seed), keys, jnp.zeros((0, 3))
    )


def save(folder, last, best, **memory):
    pair = [(n, checkpoint.to_arrays(state(n))) for n in (last, best)]
    checkpoint.save(folder, *pair, {"round": last, "best_round": best} | memory, IDENTITY)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_last_and_best_come_back_bit_for_bit(tmp_path):
    save(tmp_path, 20, 10, value=0.1 + 0.2)
    shapes = jax.eval_shape(state)
    assert_same(checkpoint.restore(tmp_path, "last", shapes), state(20))
    assert_same(checkpoint.restore(tmp_path, "best", shapes), state(10))
    remembered = {"round": 20, "best_round": 10, "value": 0.1 + 0.2}
    assert checkpoint.read_progress(tmp_path, IDENTITY) == remembered


def test_a_state_goes_to_arrays_and_back():
    assert_same(
        checkpoint.to_state(checkpoint.to_arrays(state(3)), jax.eval_shape(state)), state(3)
    )


def test_arrays_do_not_share_memory_with_the_state():
    table = jnp.zeros(3)
    checkpoint.to_arrays({"table": table})["table"][:] = 1
    np.testing.assert_array_equal(table, np.zeros(3))


def test_only_the_last_and_the_best_round_are_kept(tmp_path):
    for last, best in [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4)]:
        save(tmp_path, last, best)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.json", "round-4", "round-5"]
    assert_same(checkpoint.restore(tmp_path, "best", state()), state(4))


def test_no_file_is_a_pickle(tmp_path):
    save(tmp_path, 2, 1)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if path.suffix in (".pkl", ".pickle")]
    assert not [path for path in files if path.read_bytes()[:1] == b"\x80"]


def test_a_save_that_was_never_committed_does_not_count(tmp_path, monkeypatch):
    save(tmp_path, 2, 1)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 4, 3)
    monkeypatch.undo()
    assert_same(checkpoint.restore(tmp_path, "last", state()), state(2))
    assert_same(checkpoint.restore(tmp_path, "best", state()), state(1))
    save(tmp_path, 4, 3)
    assert_same(checkpoint.restore(tmp_path, "last", state()), state(4))


@pytest.mark.skipif(resource is None, reason="the size of files has no limit here")
def test_a_full_disk_is_one_line_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 2, 1)
    wide = {"table": np.random.default_rng(0).random((64, 1000))}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(OSError, match=r"round-4: cannot be written: File too large; ") as told:
            checkpoint.save(tmp_path, (4, wide), (4, wide), {"round": 4, "best_round": 4}, IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(told.value)
    assert_same(checkpoint.restore(tmp_path, "last", state()), state(2))
    save(tmp_path, 4, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["index.json", "round-1", "round-4"]


def test_without_a_commit_there_is_nothing_to_remember(tmp_path):
    assert checkpoint.read_progress(tmp_path / "checkpoint", IDENTITY) is None
    with pytest.raises(CheckpointError, match=r"index\.json: cannot be read"):
        checkpoint.restore(tmp_path, "last", state())


def test_another_run_is_refused(tmp_path):
    save(tmp_path, 1, 1)
    with pytest.raises(CheckpointError, match="other data and settings"):
        checkpoint.read_progress(tmp_path, IDENTITY | {"settings": "S", "data": "D"})


def test_another_shape_is_refused_by_name(tmp_path):
    save(tmp_path, 1, 1)
    with pytest.raises(CheckpointError, match=r"groups/0/table.*\[5, 4\].*\[5, 8\]"):
        checkpoint.restore(tmp_path, "last", jax.eval_shape(lambda: state(width=8)))
    with pytest.raises(CheckpointError, match=r"step is int32\[\] .* absent in this method"):
        checkpoint.restore(tmp_path, "last", state()._replace(step=None))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"memory": {}, "saved": {}, "last": "x"}'])
def test_a_damaged_index_is_refused(tmp_path, text):
    save(tmp_path, 1, 1)
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json: damaged"):
        checkpoint.read_progress(tmp_path, IDENTITY)


@pytest.mark.parametrize("harm", ["cut", "flip", "remove"])
def test_a_damaged_file_is_named(tmp_path, harm):
    save(tmp_path, 1, 1)
    for path in [path for path in (tmp_path / "round-1").rglob("*") if path.is_file()]:
        content = path.read_bytes()
        middle = len(content) // 2
        if harm == "remove" or not content:
            path.unlink()
        elif harm == "cut":
            path.write_bytes(content[:middle])
        else:
            path.write_bytes(content[:middle] + b"?" + content[middle + 1 :] + b"?")
        with pytest.raises(CheckpointError, match=f"{re.escape(path.name)}: missing or damaged"):
            checkpoint.restore(tmp_path, "last", state())
        path.write_bytes(content)
    assert_same(checkpoint.restore(tmp_path, "last", state()), state(1))
