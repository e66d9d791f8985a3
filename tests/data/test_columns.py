"""A parquet read in blocks of a few rows is the one that is read whole, and is read once."""

import warnings
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from jaxrec.data import columns, load
from jaxrec.data.check import examine
from jaxrec.files import cache_folder
from jaxrec.training.prepared import prepare
from jaxrec.training.settings import RunConfig
from jaxrec.types import DataError, Reads


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    monkeypatch.delenv("JAXREC_DATA", raising=False)


@pytest.fixture
def in_blocks(monkeypatch):
    """Makes every parquet a large one, in blocks of 7 rows."""

    def switch():
        monkeypatch.setattr(columns, "ROWS", 0)
        monkeypatch.setattr(columns, "BLOCK", 7)

    return switch


def rows(text=True, number=60):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"user": rng.integers(0, 9, number), "item": rng.integers(0, 40, number)})
    table = table.drop_duplicates(ignore_index=True)
    if text:
        table["user"] = "u" + table["user"].astype(str)
        table["item"] = (3 * table["item"]).astype(str)  # whole numbers, in the order of numbers
    table["timestamp"] = rng.integers(0, 20, len(table))
    table["rating"] = rng.random(len(table)).astype("float32")
    table["client"] = table["user"].map({u: f"c{n % 3}" for n, u in enumerate(table["user"])})
    table["split"] = np.where(table.index % 7 == 0, "test", np.where(table.index % 7, "train", ""))
    table.loc[table.index % 7 == 3, "split"] = "valid"
    table["note"] = "not read"
    return table


def written(folder: Path, table: pd.DataFrame, **tables) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in {"interactions": table, **tables}.items():
        each.to_parquet(folder / f"{name}.parquet", row_group_size=11)
    return folder


def kept() -> list[Path]:
    return sorted((cache_folder() / "tables").glob("*"))


def is_mapped(array):
    while not isinstance(array, np.memmap) and array is not None:
        array = getattr(array, "base", None)
    return array is not None


def assert_same(found, expected):
    assert found.digest == expected.digest
    for name in ("interactions", "items", "users"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("described", [True, False])
def test_a_table_in_blocks_is_the_table(tmp_path, in_blocks, text, described):
    table = rows(text)
    items = pd.DataFrame({"item": np.unique(table["item"])[::-1]}).assign(title="a title")
    folder = written(tmp_path / "toy", table, **({"items": items} if described else {}))
    expected = load(folder)
    assert not kept()
    in_blocks()
    assert_same(load(folder), expected)
    assert len(kept()) == 1
    run = replace(RunConfig(), split="leave-one-out", partition="given")
    packed = [prepare(run, each, Reads(history=True)) for each in (load(folder), expected)]
    assert packed[0].record == packed[1].record
    same = lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    arrays = lambda found: (found.data, found.known, found.valid.buckets, found.test.buckets)
    jax.tree.map(same, *map(arrays, packed))


def test_many_files_are_one_table(tmp_path, in_blocks):
    table = rows()
    expected = load(written(tmp_path / "one" / "toy", table))
    parts = tmp_path / "many" / "toy" / "interactions.parquet"
    parts.mkdir(parents=True)
    table.iloc[:20].to_parquet(parts / "part-0.parquet")
    table.iloc[20:].to_parquet(parts / "part-1.parquet")
    in_blocks()
    assert_same(load(parts.parent), expected)


def test_dates_and_categories_are_kept(tmp_path, in_blocks):
    table = rows()
    table["timestamp"] = pd.to_datetime(86_400 * table["timestamp"], unit="s")
    table["item"] = table["item"].astype("category")
    folder = written(tmp_path / "toy", table)
    expected = load(folder)
    in_blocks()
    assert_same(load(folder), expected)
    assert kept()


def test_repeats_keep_their_earliest_row(tmp_path, in_blocks):
    table = rows()
    again = table.iloc[5:25].assign(timestamp=lambda each: each["timestamp"] - 3 + each.index % 7)
    differ = again["timestamp"] != table["timestamp"][again.index]
    folder = written(tmp_path / "toy", pd.concat([table, again[differ]], ignore_index=True))
    with pytest.warns(UserWarning, match="repeat a") as first:
        expected = load(folder)
    in_blocks()
    with pytest.warns(UserWarning, match="repeat a") as second:
        assert_same(load(folder), expected)
    assert str(first[0].message) == str(second[0].message)


def test_the_cache_is_read_in_place_of_the_table(tmp_path, in_blocks, monkeypatch):
    folder = written(tmp_path / "toy", rows())
    in_blocks()
    expected = load(folder)
    monkeypatch.setattr(columns, "_write", None)
    found = load(folder)
    assert_same(found, expected)
    assert is_mapped(found.interactions["timestamp"].to_numpy())
    (folder / "interactions.parquet").rename(folder / "moved.parquet")
    assert_same(load(folder / "moved.parquet"), expected)  # the content is the key
    monkeypatch.undo()
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
    in_blocks()
    written(folder, rows().iloc[1:])
    assert load(folder / "interactions.parquet").digest != expected.digest


@pytest.mark.parametrize("damage", ["short", "gone", "index", "codes", "ids"])
def test_a_damaged_cache_is_made_again_with_a_warning(tmp_path, in_blocks, damage):
    folder = written(tmp_path / "toy", rows())
    in_blocks()
    expected = load(folder)
    (place,) = kept()
    column = place / "0.npy"
    if damage == "short":
        column.write_bytes(column.read_bytes()[:-8])
    elif damage == "gone":
        column.unlink()
    elif damage == "index":
        (place / "index.json").write_text("{")
    elif damage == "codes":
        np.save(column, np.full_like(np.load(column), 77))
    else:
        (place / "0.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match="is damaged .* the table is read again"):
        assert_same(load(folder), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(load(folder), expected)


def test_a_damaged_parquet_is_one_error(tmp_path, in_blocks):
    folder = written(tmp_path / "toy", rows())
    file = folder / "interactions.parquet"
    whole = file.read_bytes()
    in_blocks()
    for content in (whole[:-20], b"", whole[:60] + bytes(400) + whole[460:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as a parquet file"):
            load(folder)
    assert not kept()


def test_a_cache_that_cannot_be_written_is_one_error(tmp_path, in_blocks, monkeypatch):
    folder = written(tmp_path / "toy", rows())
    in_blocks()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="let JAXREC_CACHE name a folder"):
        load(folder)


def faulty(column, row, value):
    table = rows(text=False).astype({column: object})
    table.loc[row, column] = value
    return table.astype({column: "float64"}) if column in ("user", "timestamp") else table


@pytest.mark.parametrize(
    ("column", "value"), [("user", None), ("user", 2e16), ("user", 1.5), ("timestamp", None)]
)
def test_a_fault_is_named_as_in_a_table_that_is_read_whole(tmp_path, in_blocks, column, value):
    folder = written(tmp_path / "toy", faulty(column, 30, value))
    with pytest.raises(DataError) as expected:
        load(folder)
    problems = examine(folder).problems
    in_blocks()
    with pytest.raises(DataError) as found:
        load(folder)
    assert str(found.value) == str(expected.value)
    assert "row 30" in str(found.value)
    assert examine(folder).problems == problems


def test_a_wrong_split_and_a_second_client_are_named(tmp_path, in_blocks):
    in_blocks()
    folder = written(tmp_path / "a" / "toy", faulty("split", 30, "later"))
    with pytest.raises(DataError, match="row 30: later is not a split"):
        load(folder)
    folder = written(tmp_path / "b" / "toy", faulty("client", 30, "other"))
    with pytest.raises(DataError, match="row 30: other is a second client"):
        load(folder)


def test_without_an_item_the_table_is_not_read(tmp_path, in_blocks, monkeypatch):
    folder = written(tmp_path / "toy", rows().drop(columns="item"))
    in_blocks()
    monkeypatch.setattr(columns, "_write", None)
    with pytest.raises(DataError, match=r"no column 'item'.*found .*'note'"):
        load(folder)


def test_what_is_no_plain_table_is_read_whole(tmp_path, in_blocks):
    table = rows()
    table["timestamp"] = pd.to_datetime(table["timestamp"], unit="s").astype(str)
    folder = written(tmp_path / "toy", table)
    expected = load(folder)
    in_blocks()
    assert_same(load(folder), expected)
    assert not kept()
