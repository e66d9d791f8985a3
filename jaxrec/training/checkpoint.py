"""Checkpoints: states on disk as arrays and JSON, written by orbax, never a pickle.

A checkpoint folder holds one orbax folder for each saved round and `index.json`, which names the
last and the best of them. Replacing the index is the one act that commits a save, so a run
killed at any moment leaves either the old pair of states or the new one.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.files import is_a, read_json, sha256, write_json, writing
from jaxrec.mesh import on_host
from jaxrec.types import CheckpointError

Arrays = dict[str, np.ndarray]
INDEX = {"last": str, "best": str, "saved": dict, "memory": dict, "identity": dict}
ROUNDS = ("round", "best_round")  # in the memory


def to_arrays(state: Any) -> Arrays:
    """A state's leaves on the host by path, copied; a typed PRNG key becomes its words."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {_name(path): np.array(on_host(_words(leaf))) for path, leaf in leaves}


def to_state(arrays: Arrays, like: Any, place: Any = None) -> Any:
    """The inverse of `to_arrays`; `like` is the state, or its shapes as `jax.eval_shape` gives.

    With `place`, a sharding for each leaf, a device is given its own part alone.
    """

    def leaf(path: tuple, shape: Any, at: jax.sharding.Sharding | None = None) -> jax.Array:
        array = arrays[_name(path)]
        part = lambda index: np.array(array[index])  # a copy: the state may be donated
        words = jax.make_array_from_callback(array.shape, at, part) if at else jnp.array(array)
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(words)
        return words

    places = () if place is None else (place,)
    return jax.tree_util.tree_map_with_path(leaf, like, *places)


def save(
    folder: Path,
    last: tuple[int, Arrays],
    best: tuple[int, Arrays],
    progress: Mapping[str, Any],
    identity: Mapping[str, str],
) -> None:
    """Save the last and the best state, each with its round, and how far the run has come.

    `identity` says which run they are of. On return they are committed and older rounds are gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.json"
    old = _index(folder)["saved"] if path.exists() else {}
    _keep(folder, old)  # a write that failed has left its part, and takes the room of this one
    saved = {}
    for number, arrays in {last[0]: last[1], best[0]: best[1]}.items():
        name = f"round-{number}"
        if name not in old:
            _write(folder / name, arrays)
        saved[name] = old.get(name) or {
            "leaves": _leaves(arrays),
            "sha256": _digests(folder / name),
        }
    index = {"last": f"round-{last[0]}", "best": f"round-{best[0]}", "saved": saved}
    write_json(path, {**index, "memory": progress, "identity": identity})
    _keep(folder, saved)


def _keep(folder: Path, saved: Mapping[str, Any]) -> None:
    """Remove all but the index and the states it names."""
    for other in set(folder.iterdir()) - {folder / name for name in ("index.json", *saved)}:
        shutil.rmtree(other) if other.is_dir() else other.unlink()


def read_progress(folder: Path, identity: Mapping[str, str]) -> dict[str, Any] | None:
    """How far the run had come at the last commit, None where there is none yet.

    Raises CheckpointError if it is damaged or of a run with another identity; what only one of the
    two knows, such as a setting that an older version lacked, is no difference.
    """
    if not (folder / "index.json").exists():
        return None
    index = _index(folder)
    both = index["identity"].keys() & identity.keys()
    if other := sorted(name for name in both if index["identity"][name] != identity[name]):
        raise CheckpointError(f"{folder}: is of a run with other {' and '.join(other)}")
    return index["memory"]


def restore(folder: Path, which: str, like: Any, rows: Mapping[int, int] | None = None) -> Any:
    """The `which` ("last" or "best") state of a checkpoint; see `restore_arrays`."""
    return to_state(restore_arrays(folder, which, like, rows), like)


def restore_arrays(
    folder: Path, which: str, like: Any, rows: Mapping[int, int] | None = None
) -> Arrays:
    """The `which` ("last" or "best") state of a checkpoint as arrays on the host, as `like` has it.

    `rows` says how many rows of a first axis of a length in `like` are no padding: the checkpoint
    may have them with another padding. Raises CheckpointError if it is missing, damaged, or of
    other shapes.
    """
    index = _index(folder)
    path = folder / index[which]
    expected = index["saved"][path.name]
    saved, wanted = expected["leaves"], _shapes(like)
    target = {name: _as_saved(shape, saved.get(name), rows) for name, shape in wanted.items()}
    shapes = _leaves(target)
    if shapes != expected["leaves"]:
        names = sorted(set(shapes) | set(expected["leaves"]))
        name = next(n for n in names if shapes.get(n) != expected["leaves"].get(n))
        raise CheckpointError(
            f"{path}: {name} is {expected['leaves'].get(name, 'absent')} in the checkpoint and "
            f"{shapes.get(name, 'absent')} in this method: it is of another run or version"
        )
    listed, digests = expected["sha256"], _digests(path)
    if harmed := sorted(n for n in listed | digests if listed.get(n) != digests.get(n)):
        where = "missing or damaged" if harmed[0] in listed else "has no checksum in index.json"
        raise CheckpointError(f"{path / harmed[0]}: {where}")
    found = _read(path, target).items()
    return {name: _padded(array, wanted[name].shape) for name, array in found}


def _as_saved(
    shape: jax.ShapeDtypeStruct, saved: str | None, rows: Mapping[int, int] | None
) -> jax.ShapeDtypeStruct:
    """The shape with the padding that it has in the checkpoint."""
    length = re.match(r"\w+\[(\d+)", saved or "")
    if rows and length and shape.shape and int(length[1]) >= rows.get(shape.shape[0], np.inf):
        other = jax.ShapeDtypeStruct((int(length[1]), *shape.shape[1:]), shape.dtype)
        return other if _spelled(other) == saved else shape
    return shape


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """With its first axis as long as in `shape`, by copies of the last row or by cutting."""
    if array.shape == shape:
        return array
    more = max(0, shape[0] - len(array))
    return np.pad(array, [(0, more)] + [(0, 0)] * (array.ndim - 1), mode="edge")[: shape[0]]


def _index(folder: Path) -> dict[str, Any]:
    path = folder / "index.json"
    try:
        index = read_json(path, INDEX)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    texts = lambda found: is_a(found, dict) and all(is_a(text, str) for text in found.values())
    for name in (index["last"], index["best"]):
        kept = index["saved"].get(name)
        listed = is_a(kept, dict) and texts(kept.get("leaves"))
        if not (listed and re.fullmatch(r"round-\d+", name)):
            raise CheckpointError(f"{path}: damaged ({name} has no list of its arrays)")
        if not (texts(kept.get("sha256")) and kept["sha256"]):
            raise CheckpointError(f"{path}: damaged ({name} has no checksums)")
    if lacking := [name for name in ROUNDS if not is_a(index["memory"].get(name), int)]:
        raise CheckpointError(f"{path}: damaged (its memory has no {lacking[0]})")
    if not (texts(index["identity"]) and {"method", "data"} <= set(index["identity"])):
        raise CheckpointError(f"{path}: damaged (identity = {index['identity']!r:.40})")
    return index


def _write(path: Path, arrays: Arrays) -> None:
    # orbax refuses arrays without elements; their shape in the index is all there is to them
    with writing(path), _orbax() as checkpointer:
        checkpointer.save(path.absolute(), {n: a for n, a in arrays.items() if a.size}, force=True)


def _read(path: Path, shapes: Mapping[str, Any]) -> Arrays:
    zeros = {name: np.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    target = {name: array for name, array in zeros.items() if array.size}
    try:
        with _orbax() as checkpointer:
            return zeros | checkpointer.restore(path.absolute(), target)
    except Exception as error:  # of orbax, which has no type of its own for what it cannot read
        raise CheckpointError(f"{path}: cannot be read ({error!s:.200})") from error


@contextlib.contextmanager
def _orbax():
    import orbax.checkpoint as ocp

    loggers = [logging.getLogger(name) for name in ("absl", "orbax")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    own = jax.process_index()  # the arrays are whole, and no other process is waited for
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone)
    before, sys.unraisablehook = sys.unraisablehook, _without_late_parts
    try:
        yield checkpointer
        sys.unraisablehook = before  # not after a failure, whose other parts are still on their way
    finally:
        checkpointer.close()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _without_late_parts(said: Any) -> None:
    """The usual hook but for what tensorstore's threads say, each, of a write that has failed."""
    if str(said.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(said)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/") or "state"


def _words(leaf: Any) -> Any:
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _shapes(like: Any) -> dict[str, jax.ShapeDtypeStruct]:
    words = jax.eval_shape(lambda state: jax.tree.map(_words, state), like)
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(words)[0]}


def forms(state: Any) -> dict[str, str]:
    """The type and shape of each array of a state, or of what describes one, by its name."""
    return _leaves(_shapes(state))


def _leaves(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: _spelled(array) for name, array in arrays.items()}


def _spelled(array: Any) -> str:
    return f"{np.dtype(array.dtype).name}{list(array.shape)}"


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
