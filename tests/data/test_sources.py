"""Every form is read to the same tables; every fault is named with file, column and row."""

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import load
from jaxrec.data.split import core
from jaxrec.types import DataError

ROWS = pd.DataFrame(
    {
        "user": [0, 0, 1, 2, 2],
        "item": [0, 2, 1, 0, 1],
        "rating": [5.0, 3.0, 4.0, 1.0, 2.0],
        "timestamp": [30, 10, 20, 50, 40],
    }
)


@pytest.fixture(autouse=True)
def no_root(request, monkeypatch):
    if "realdata" not in request.keywords:
        monkeypatch.delenv("JAXREC_DATA", raising=False)


def write(path: Path, table: pd.DataFrame) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def folder(tmp_path: Path, rows: pd.DataFrame = ROWS, suffix: str = ".parquet", **tables) -> Path:
    for stem, table in {"interactions": rows, **tables}.items():
        write(tmp_path / "toy" / f"{stem}{suffix}", table)
    return tmp_path / "toy"


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(DataError) as error:
        load(path)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_folder_keeps_its_contiguous_ids_and_the_length_of_its_catalogue(tmp_path, suffix):
    items = pd.DataFrame(
        {
            "item": [3, 0, 1, 2],
            "title": ["D", "A", None, "C"],
            "genres": ["w|x", "x", "y", None],
            "domain": [1, 0, 0, 1],
            "raw_id": ["d", "a", "b", "c"],
        }
    )
    data = load(folder(tmp_path, suffix=suffix, items=items))
    assert data.name == "toy"
    pd.testing.assert_frame_equal(data.interactions[list(ROWS)], ROWS, check_dtype=False)
    assert [str(data.interactions[c].dtype) for c in ROWS] == ["int32", "int32", "float32", "int64"]
    assert data.num_users == 3
    assert data.num_items == 4
    assert data.items["item"].tolist() == [0, 1, 2, 3]
    assert data.items["title"].tolist() == ["A", "", "C", "D"]
    assert data.items["category"].tolist() == ["x", "y", "", "w|x"]
    assert data.items["domain"].tolist() == [0, 0, 1, 1]
    assert data.items["raw_id"].tolist() == ["a", "b", "c", "d"]
    assert data.users["raw_id"].tolist() == [0, 1, 2]


def test_ids_with_gaps_become_ranks_and_keep_their_raw_form(tmp_path):
    rows = ROWS.assign(user=[70, 70, 8, 9, 9], item=["b", "z", "a", "b", "a"])
    items = pd.DataFrame({"item": ["z", "b", "unseen", "a"], "title": ["Z", "B", "U", "A"]})
    data = load(folder(tmp_path, rows, items=items))
    assert data.interactions["user"].tolist() == [2, 2, 0, 1, 1]
    assert data.users["raw_id"].tolist() == [8, 9, 70]
    assert data.items["raw_id"].tolist() == ["a", "b", "unseen", "z"]
    assert data.items["title"].tolist() == ["A", "B", "U", "Z"]
    assert data.items["title"][data.interactions["item"]].tolist() == ["B", "Z", "A", "B", "A"]


def test_lists_of_candidates_are_read_in_their_order_and_follow_the_core(tmp_path):
    rows = ROWS.assign(user=[70, 70, 8, 9, 9], item=["b", "z", "a", "b", "a"])
    lists = pd.DataFrame({"user": [70, 9], "candidates": [["a", "z", "a"], ["z", "b"]]})
    data = load(folder(tmp_path, rows, candidates=lists))
    assert data.candidates.to_numpy().tolist() == [[2, 0], [2, 2], [1, 2], [1, 1]]
    kept = core(data, min_user=1, min_item=2)  # item z goes
    assert kept.candidates.to_numpy().tolist() == [[2, 0], [1, 1]]
    assert data.digest != load(folder(tmp_path / "without", rows)).digest
    wrong = lists.assign(candidates=[["a"], ["q"]])
    refused(folder(tmp_path / "wrong", rows, candidates=wrong), "q is not among the 3 ids", "row 1")
    empty = lists.assign(candidates=[["a"], []])
    refused(folder(tmp_path / "empty", rows, candidates=empty), "'candidates', row 1", "is missing")


@pytest.mark.parametrize("number", [str, int])
def test_ids_of_candidates_are_numbers_where_those_of_the_rows_are(tmp_path, number):
    rows = ROWS.assign(user=["7", "7", "8", "9", "9"], item=["1", "3", "2", "1", "2"])
    lists = [[number(each) for each in own] for own in ((3, 1), (2,))]
    lists = pd.DataFrame({"user": [number(9), number(7)], "candidates": lists, "item": [1, 2]})
    data = load(folder(tmp_path, rows, candidates=lists))
    assert data.candidates.to_numpy().tolist() == [[2, 2], [2, 0], [0, 1]]
    mixed = rows.assign(item=["1", "3", "b", "1", "b"])
    lists = lists.assign(candidates=[[number(3)], [number(1)]])
    data = load(folder(tmp_path / "mixed", mixed, candidates=lists))
    assert data.candidates.to_numpy().tolist() == [[2, 1], [0, 0]]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv"])
@pytest.mark.parametrize("names", [("user_id", "movieId"), ("userId", "itemId"), ("user", "item")])
def test_a_table_is_read_by_common_column_names(tmp_path, suffix, names):
    rows = ROWS.rename(columns=dict(zip(("user", "item"), names, strict=True)))
    data = load(write(tmp_path / f"toy{suffix}", rows))
    assert data.name == "toy"
    pd.testing.assert_frame_equal(data.interactions, ROWS, check_dtype=False)


def test_text_ids_keep_leading_zeros_and_numbers_sort_as_numbers(tmp_path):
    path = tmp_path / "toy.csv"
    path.write_text("user,item\n10,007\n9,7\n")
    data = load(path)
    assert data.users["raw_id"].tolist() == [9, 10]
    assert data.items["raw_id"].tolist() == ["007", "7"]


@pytest.mark.parametrize("column", ["position", "order"])
def test_a_position_stands_in_for_the_time(tmp_path, column):
    data = load(folder(tmp_path, ROWS.rename(columns={"timestamp": column})))
    assert data.interactions["timestamp"].tolist() == ROWS["timestamp"].tolist()


def test_dates_become_seconds(tmp_path):
    rows = ROWS.assign(timestamp=["1970-01-02", "1970-01-01T00:01:00Z"] + ["2000-01-01"] * 3)
    data = load(folder(tmp_path, rows, ".csv"))
    assert data.interactions["timestamp"].tolist()[:3] == [86_400, 60, 946_684_800]


def test_splits_may_be_numbers_or_names_and_clients_any_ids(tmp_path):
    rows = ROWS.assign(split=["train", "test", "valid", "0", "2"], client=["x", "x", "b", "b", "b"])
    data = load(folder(tmp_path, rows, ".csv"))
    assert data.interactions["split"].tolist() == [0, 2, 1, 0, 2]
    assert data.interactions["client"].tolist() == [1, 1, 0, 0, 0]
    assert data.interactions.dtypes[["split", "client"]].astype(str).tolist() == ["int8", "int32"]


def test_recbole_files_are_read_with_their_items(tmp_path):
    (tmp_path / "toy.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "u2\t30\t4\t100.0\nu1\t5\t3\t200.0\nu1\t30\t1\t50.0\n"
    )
    (tmp_path / "toy.item").write_text(
        'item_id:token\tmovie_title:token_seq\tclass:token_seq\n30\tThe "B"\tDrama War\n9\tC\tWar\n'
    )
    for path in (tmp_path / "toy.inter", tmp_path):
        data = load(path)
        assert data.interactions.to_numpy().tolist() == [
            [1, 1, 4, 100],
            [0, 0, 3, 200],
            [0, 1, 1, 50],
        ]
        assert data.users["raw_id"].tolist() == ["u1", "u2"]
        assert data.items["raw_id"].tolist() == [5, 30]
        assert data.items["title"].tolist() == ["", 'The "B"']
        assert data.items["category"].tolist() == ["", "Drama|War"]


ML_1M = {
    "ratings.dat": "1::1193::5::978300760\n2::1::3::978302109\n",
    "movies.dat": "1::Caf\xe9: The Movie (1995)::Comedy\n1193::Cuckoo (1975)::Drama|War\n"
    "7::No::War\n",
}
ML_100K = {
    "u.data": "1\t1193\t5\t978300760\n2\t1\t3\t978302109\n",
    "u.genre": "Comedy|0\nDrama|1\nWar|2\n\n",
    "u.item": "1|Caf\xe9: The Movie (1995)|01-Jan-1995||http://a|1|0|0\n"
    "1193|Cuckoo (1975)|01-Jan-1975||http://b|0|1|1\n7|No|||http://c|0|0|1\n",
}


@pytest.mark.parametrize("files", [ML_1M, ML_100K], ids=["ml-1m", "ml-100k"])
@pytest.mark.parametrize("inner", ["", "ml/"], ids=["flat", "nested"])
def test_movielens_is_read_from_its_zip(tmp_path, files, inner):
    with zipfile.ZipFile(tmp_path / "any name.zip", "w") as archive:
        for name, text in files.items():
            archive.writestr(inner + name, text.encode("latin-1"))
    data = load(tmp_path / "any name.zip")
    assert data.interactions.to_numpy().tolist() == [[0, 1, 5, 978300760], [1, 0, 3, 978302109]]
    assert data.items["title"].tolist() == ["Café: The Movie (1995)", "Cuckoo (1975)"]
    assert data.items["category"].tolist() == ["Comedy", "Drama|War"]
    assert data.items["raw_id"].tolist() == [1, 1193]


def test_the_data_root_comes_before_the_current_folder(tmp_path, monkeypatch):
    folder(tmp_path / "root")
    folder(tmp_path / "here", ROWS.head(2))
    monkeypatch.chdir(tmp_path / "here")
    assert len(load("toy").interactions) == 2
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "root"))
    assert len(load("toy").interactions) == 5


def test_an_unknown_name_is_answered_with_the_nearest_and_the_places(tmp_path, monkeypatch):
    folder(tmp_path)
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path))
    for wrong, right in (("synthtic", "synthetic"), ("ml100k", "ml-100k"), ("toys", "toy")):
        refused(wrong, f"no dataset '{wrong}'", f"did you mean {right}", str(tmp_path))
    monkeypatch.setenv("JAXREC_DATA", str(tmp_path / "absent"))
    refused("x", "Known names: ml-100k, ml-1m, synthetic")


def test_a_repeated_pair_at_other_times_keeps_the_earliest_and_says_so(tmp_path):
    rows = pd.concat(
        [ROWS, pd.DataFrame({"user": [2], "item": [0], "rating": [3.0], "timestamp": [7]})]
    )
    with pytest.warns(UserWarning, match=r"1 rows repeat.*line 7.*earliest"):
        data = load(folder(tmp_path, rows, ".csv"))
    assert data.interactions["rating"].tolist() == [5, 3, 4, 2, 3]
    assert data.interactions.index.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("suffix, third", [(".csv", "line 4"), (".parquet", "row 2")])
@pytest.mark.parametrize(
    "column, value, problem",
    [
        ("user", np.nan, "is missing"),
        ("timestamp", np.nan, "is not a finite number"),
        ("timestamp", np.inf, "is not a finite number"),
        ("split", 3, "is not a split"),
    ],
)
def test_a_bad_cell_is_named_by_file_column_and_row(
    tmp_path, suffix, third, column, value, problem
):
    rows = ROWS.assign(split=0).astype({column: float})
    rows.loc[2, column] = value
    path = folder(tmp_path, rows, suffix)
    refused(path, str(path / f"interactions{suffix}"), f"column '{column}'", third, problem)


@pytest.mark.parametrize("suffix, third", [(".csv", "line 4"), (".parquet", "row 2")])
@pytest.mark.parametrize(
    "column, value, problem",
    [
        ("rating", np.nan, "is not a finite number"),
        ("rating", np.inf, "is not a finite number"),
        ("domain", -2, "is not a whole number from 0 to 127"),
    ],
)
def test_a_bad_cell_that_nobody_reads_costs_its_column(
    tmp_path, suffix, third, column, value, problem
):
    rows = ROWS.assign(domain=0).astype({column: float})
    rows.loc[2, column] = value
    path = folder(tmp_path, rows, suffix)
    told = f"interactions{suffix}, column '{column}', {third}: .*{problem}.* left out"
    with pytest.warns(UserWarning, match=told):
        data = load(path)
    expected = folder(tmp_path / "without", rows.drop(columns=column), suffix)
    assert data.digest == load(expected).digest


def test_a_fraction_is_an_id_only_as_text(tmp_path):
    rows = ROWS.assign(item=[0.0, 2.0, 1.5, 0.0, 1.0])
    refused(
        write(tmp_path / "toy.parquet", rows), "column 'item', row 2: 1.5 is not a whole number"
    )
    data = load(write(tmp_path / "toy.csv", rows.astype({"item": str})))
    assert data.items["raw_id"].tolist() == ["0.0", "1.0", "1.5", "2.0"]


def test_lines_are_counted_over_blank_ones(tmp_path):
    path = tmp_path / "toy.csv"
    path.write_text("user,item,timestamp\n1,2,3\n\n\n1,3,bad\n2,2,4\n2,3,worse\n2,4,9\n")
    refused(path, "column 'timestamp', line 5: bad", "2 such rows")


def test_missing_and_ambiguous_columns_are_listed(tmp_path):
    refused(write(tmp_path / "a.csv", ROWS.drop(columns="item")), "no column 'item'", "'rating'")
    refused(write(tmp_path / "b.csv", ROWS.assign(user_id=1)), "['user', 'user_id']", "'user'")
    items = pd.DataFrame({"title": ["A", "B", "C"]})
    refused(folder(tmp_path, items=items), "items.parquet", "no column 'item'", "['title']")


def test_rows_that_contradict_each_other_are_named(tmp_path):
    twice = pd.concat([ROWS, ROWS.iloc[[1]]])
    refused(write(tmp_path / "twice.csv", twice), "line 7", "repeats an earlier row")
    untimed = ROWS.drop(columns="timestamp").assign(item=[0, 0, 1, 0, 1])
    refused(write(tmp_path / "untimed.parquet", untimed), "row 1", "repeats an earlier row")
    torn = ROWS.assign(client=[0, 0, 1, 1, 0])
    refused(write(tmp_path / "torn.csv", torn), "'client', line 6", "second client")


def test_the_catalogue_is_checked(tmp_path):
    items = pd.DataFrame({"item": [0, 1], "title": ["A", "B"]})
    refused(
        folder(tmp_path, items=items), "'item', row 1: 2 is not among the 2 ids", "items.parquet"
    )
    items = pd.DataFrame({"item": [0, 1, 2, 1]})
    refused(folder(tmp_path, items=items), "items.parquet", "row 3: 1 occurs twice")
    users = pd.DataFrame({"user": [0, 1]})
    refused(folder(tmp_path, items=items.head(3), users=users), "'user', row 3: 2", "users.parquet")


def test_unreadable_files_are_named(tmp_path):
    whole = write(tmp_path / "whole.parquet", ROWS).read_bytes()
    bad = {
        "cut.parquet": (whole[:-20], "parquet file"),
        "page.zip": (b"<html>", "zip archive"),
        "binary.csv": (b"user,item\n\xff\xfe\x00", "table of text"),
        "ragged.csv": (b"user,item\n1,2\n1,2,3\n", "line 3"),
        "wide.csv": (b"user,item\n1,2,3\n", "more fields than the header"),
        "empty.csv": (b"", "table of text"),
        "header.csv": (b"user,item\n", "no interactions"),
        "untyped.inter": (b"user_id\titem_id\n1\t2\n", "have no type"),
        "notes.txt": (b"hello", "unknown kind of file '.txt'"),
    }
    for name, (content, problem) in bad.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, name, problem)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(tmp_path / "other.zip", "neither MovieLens", "readme.txt")
    (tmp_path / "void").mkdir()
    refused(tmp_path / "void", "no interactions.parquet", "holds nothing")
    write(folder(tmp_path) / "interactions.csv", ROWS)
    refused(tmp_path / "toy", "both interactions.parquet and interactions.csv")


def test_the_digest_is_of_the_content_not_of_the_file(tmp_path):
    items = pd.DataFrame({"item": [0, 1, 2], "title": ["A", "B", "C"]})
    base = load(folder(tmp_path / "a", items=items)).digest
    assert load(folder(tmp_path / "b", items=items, suffix=".csv")).digest == base
    shuffled = folder(tmp_path / "c", ROWS[ROWS.columns[::-1]], items=items[::-1])
    assert load(shuffled).digest == base
    others = [
        (ROWS.assign(rating=1.0), items),
        (ROWS.drop(columns="rating"), items),
        (ROWS[::-1], items),
        (ROWS, items.assign(title=["AB", "", "C"])),
    ]
    digests = {
        load(folder(tmp_path / str(k), r, items=i)).digest for k, (r, i) in enumerate(others)
    }
    assert len(digests | {base}) == 5


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:.*390 rows repeat")
def test_every_shared_dataset_loads_with_the_counts_of_its_readme(data_root):
    expected = {
        "fedcia-ml100k": (943, 1_682, 100_000),
        "fedcia-ml1m": (6_040, 3_952, 1_000_209),
        "movielens-100k": (943, 1_682, 100_000),
        "movielens-1m": (6_040, 3_706, 1_000_209),
        "movietweetings": (21_081, 12_611, 141_695),
        "movietweetings-small": (1_977, 1_717, 61_739),
        "beauty-s3rec": (22_363, 12_101, 198_502),
        "amazon-beauty": (22_332, 12_086, 198_215),
        "amazon-games": (50_597, 16_874, 453_637 - 390),
        "amazon-books": (38_234, 38_519, 517_167),
        "lastfm": (1_220, 4_606, 52_925),
        "movies-toys": (5_376, 26_640, 42_432),
        "food-kitchen": (4_699, 26_877, 66_976),
        "cds100-dense": (100, 269, 800),
        "cds100-sparse": (100, 704, 800),
    }
    found = {}
    for path in sorted(p for p in data_root.iterdir() if p.is_dir() and p.name != "raw"):
        data = load(path.name)
        found[path.name] = (data.num_users, data.num_items, len(data.interactions))
        assert data.items["item"].tolist() == list(range(data.num_items))
        assert data.users["user"].tolist() == list(range(data.num_users))
    assert found == expected


@pytest.mark.realdata
@pytest.mark.parametrize("name, source", [("movielens-100k", "ml-100k"), ("movielens-1m", "ml-1m")])
def test_the_original_zips_agree_with_the_folders(data_root, name, source):
    folder_form, zip_form = load(name), load(f"raw/{source}.zip")
    assert zip_form.name == source
    for column in ("title", "category", "raw_id"):
        assert folder_form.items[column].tolist() == zip_form.items[column].tolist()
    keys = ["user", "item"]
    a, b = (d.interactions.sort_values(keys).to_numpy() for d in (folder_form, zip_form))
    np.testing.assert_array_equal(a, b)


def test_times_keep_their_order_or_are_refused(tmp_path):
    rows = pd.DataFrame({"user": [0, 0], "item": [0, 1], "timestamp": [0.9, 0.1]})
    rows.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match=r"column 'timestamp', line 2: 0\.9 has a fraction"):
        load(tmp_path / "a.csv")
    rows["timestamp"] = pd.to_datetime(rows["timestamp"], unit="s")
    rows.to_parquet(tmp_path / "b.parquet")
    assert load(tmp_path / "b.parquet").interactions["timestamp"].tolist() == [900_000, 100_000]


def test_an_id_is_found_among_text_ids(tmp_path):
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\n1\t1\n1\t2\n")
    items = "item_id:token\ttitle:token\n1\tone\n2\ttwo\nb4\tfour\n"
    (tmp_path / "x.item").write_text(items)
    assert load(tmp_path / "x.inter").items["title"].tolist() == ["one", "two"]


def test_an_item_without_a_domain_costs_the_domains(tmp_path):
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\n1\t1\n1\t2\n")
    (tmp_path / "x.item").write_text("item_id:token\tdomain:float\n1\t0\n")
    with pytest.warns(UserWarning, match=r"line 3.*has no domain in .*x\.item.* left out"):
        data = load(tmp_path / "x.inter")
    assert "domain" not in data.items
