"""Options of reading, own names, ids as they are, frames, and data that are split already."""

import bz2
import gzip
import json
import lzma
import warnings
from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from jaxrec.data import columns, load, split, synthetic
from jaxrec.data.check import examine
from jaxrec.data.reading import Reading
from jaxrec.data.sources import given_data
from jaxrec.training.prepared import prepare
from jaxrec.training.settings import RunConfig, read_settings, read_toml, read_words
from jaxrec.types import DataError, SettingError

ROWS = "user,item,rating,timestamp\nu1,a,5,10\nu1,b,2,20\nu2,a,4,30\nu2,c,1,40\n"
TOY = pd.DataFrame({"user": [7, 7, 8], "item": ["a", "b", "a"], "timestamp": [1, 2, 3]})


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    monkeypatch.delenv("JAXREC_DATA", raising=False)


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def raw(data, column):
    return data.interactions[column].map(getattr(data, f"{column}s")["raw_id"]).tolist()


def refused(data, *parts, **options):
    with pytest.raises((DataError, SettingError)) as error:
        load(data, **options)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# Ids


@pytest.mark.parametrize("numbers", [[-3, 0, 12], [-(10**17), 5, 10**17], [-5, 5, 0]])
def test_signed_numbers_are_ids(tmp_path, numbers):
    text = "user,item\n" + "".join(f"{number},{k}\n" for k, number in enumerate(numbers))
    for data in (
        load(write(tmp_path / "a.csv", text)),
        load(pd.DataFrame({"user": numbers, "item": 1})),
    ):
        assert raw(data, "user") == numbers
        assert data.users["raw_id"].tolist() == sorted(numbers)


@pytest.mark.parametrize(
    "other", ["guest", "-6750739152530669046", "99999999999999999999999", "-0", "+4", "007"]
)
def test_an_id_is_what_the_file_says(tmp_path, other):
    data = load(write(tmp_path / "a.csv", f"user,item\n-7,1\n{other},2\n"))
    assert raw(data, "user") == ["-7", other]


def test_ids_above_64_bits_in_a_parquet(tmp_path):
    ids = pd.DataFrame({"user": np.array([2**64 - 1, 3], "uint64"), "item": [1, 2]})
    ids.to_parquet(tmp_path / "a.parquet")
    assert raw(load(tmp_path / "a.parquet"), "user") == [str(2**64 - 1), "3"]


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "frame"])
def test_spaces_around_ids_are_no_part_of_them(tmp_path, form):
    table = pd.DataFrame(
        {
            "user": ["u1 ", " u1", "u2"],
            " item": [" 1", "2\u00a0", " 1 "],
            "client": ["x", " x", "y"],
        }
    )
    items = pd.DataFrame({"item": ["1 ", " 2"], "title": ["A", "B"]})
    users = pd.DataFrame({"user": ["u1", " u2"]})
    if form == "frame":
        data = load(table, items=items, users=users)
    else:
        for name, each in {"interactions": table, "items": items, "users": users}.items():
            path = tmp_path / f"{name}.{form}"
            if form == "parquet":
                each.to_parquet(path)
            else:
                each.to_csv(path, index=False, sep="," if form == "csv" else "\t")
        data = load(tmp_path)
    assert raw(data, "user") == ["u1", "u1", "u2"]
    assert raw(data, "item") == [1, 2, 1]
    assert data.interactions["client"].tolist() == [0, 0, 1]
    assert data.items["title"].tolist() == ["A", "B"]


def test_candidates_are_found_by_their_ids_without_spaces(tmp_path):
    pd.DataFrame({"user": ["u ", "v"], "item": ["a", "b"]}).to_parquet(
        tmp_path / "interactions.parquet"
    )
    lists = pd.DataFrame({"user": ["v ", " u"], "candidates": [[" a", "b"], ["b "]]})
    lists.to_parquet(tmp_path / "candidates.parquet")
    assert load(tmp_path).candidates.to_numpy().tolist() == [[1, 0], [1, 1], [0, 1]]


def test_a_space_after_each_comma_is_no_part_of_a_cell(tmp_path):
    text = 'user, item, timestamp\n0, "a, b", 1600000000\n0, c , 1600000060\n'
    data = load(write(tmp_path / "a.csv", text))
    assert raw(data, "item") == ["a, b", "c"]
    assert data.interactions["timestamp"].tolist() == [1600000000, 1600000060]


def test_an_id_of_spaces_is_missing(tmp_path):
    refused(write(tmp_path / "a.csv", "user,item\n1,a\n  ,b\n"), "'user', line 3", "is missing")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([Decimal("12"), Decimal("-3")], [12, -3]),
        ([UUID(int=5), UUID(int=6)], [str(UUID(int=5)), str(UUID(int=6))]),
        (pd.array([4, -9], "Int64"), [4, -9]),
        (pd.Categorical(["b", " a"]), ["b", "a"]),
        ([True, False], ["True", "False"]),
        ([3, "x"], ["3", "x"]),
    ],
)
def test_every_kind_of_name_is_an_id(ids, expected):
    assert raw(load(pd.DataFrame({"user": 1, "item": ids})), "item") == expected


@pytest.mark.parametrize(
    "ids",
    [
        [b"a", b"b"],
        pd.to_timedelta([1, 2], unit="s"),
        pd.to_datetime([1, 2], unit="s"),
        [[1], [2, 3]],
        [{"a": 1}, {"a": 2}],
        [("a",), ("b",)],
        pd.period_range("2020", periods=2, freq="D"),
        pd.interval_range(0, 2),
        np.array([1j, 2j]),
    ],
    ids=lambda ids: type(ids[0]).__name__,
)
@pytest.mark.parametrize("column", ["user", "item", "client"])
def test_what_is_no_id_is_one_error(ids, column):
    frame = pd.DataFrame({"user": [1, 2], "item": [1, 2], "client": [1, 1]}).assign(
        **{column: pd.Series(ids)}
    )
    refused(frame, f"column '{column}', row 0", "is neither text nor number")


# What stands between the rows


@pytest.mark.parametrize(
    "row",
    [
        "user,item,rating,timestamp",
        "User_ID, movieId ,Rating,time",
        "\ufeffuser,item,rating,timestamp",
    ],
)
def test_a_repeated_header_is_an_error_and_no_item(tmp_path, row):
    path = write(tmp_path / "a.csv", ROWS + row + "\nu3,b,2,50\n")
    refused(path, "column 'item', line 6", "the header is there again. Remove the row")
    found = examine(path)
    assert ["header" in problem for problem in found.problems] == [True, False]
    assert found.dataset.items["raw_id"].tolist() == ["a", "b", "c"]
    assert found.dataset.num_users == 3


def test_a_repeated_header_of_other_tables_and_names(tmp_path):
    typed = "user_id:token\titem_id:token\n1\t2\nuser_id:token\titem_id:token\n"
    refused(write(tmp_path / "a.inter", typed), "line 3", "the header is there again")
    own = "Customer ID,SKU\n1,2\nCustomer ID,SKU\n"
    named = {"columns": {"user": "Customer ID", "item": "SKU"}}
    refused(write(tmp_path / "a.csv", own), "line 3", "the header is there again", **named)
    items = pd.DataFrame({"item": ["a", "b", "item"], "title": ["A", "B", "title"]})
    refused(TOY, "frame of items", "row 2", "the header is there again", items=items)
    assert load(TOY.assign(item=["item", "movie", "item"])).num_items == 2  # names, as any
    ids = pd.DataFrame({"user": ["user:1", "user:2"], "item": ["item:1", "item:x"]})
    assert raw(load(ids), "item") == ["item:1", "item:x"]


@pytest.mark.parametrize("last", ["Total,,12,", "total:,3,12,", ",,12,", "u9,Grand Total,12,"])
def test_a_line_of_totals_is_an_error(tmp_path, last):
    path = write(tmp_path / "a.csv", ROWS + last + "\n")
    refused(path, "line 6", "emove the")
    assert examine(path).dataset.num_users == 2


def test_a_user_called_total_is_a_user(tmp_path):
    text = "user,item\nTotal,a\nu1,a\nTotal,b\n"
    assert load(write(tmp_path / "a.csv", text)).num_users == 2


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_lines_end_as_on_any_machine(tmp_path, ends):
    path = write(tmp_path / "a.csv", "\ufeff" + ROWS.replace("\n", ends))
    assert load(path).digest == load(write(tmp_path / "b.csv", ROWS)).digest
    refused(write(tmp_path / "c.csv", (ROWS + "u2,d,3,soon\n").replace("\n", ends)), "line 6: soon")


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_a_carriage_return_in_a_title_splits_no_row(tmp_path, form):
    mark = '"' if form == "csv" else ""
    items = f"item,title\na,{mark}one\rtwo{mark}\nb,B\nc,C\nc,D\n"
    path = write(tmp_path / f"items.{form}", items.replace(",", "," if form == "csv" else "\t"))
    rows = write(tmp_path / "rows.csv", ROWS)
    refused(rows, f"items.{form}, column 'item', line 5: c occurs twice", items_file=str(path))
    path.write_bytes(path.read_bytes().replace(b"\nc\tD", b"").replace(b"\nc,D", b""))
    with pytest.warns(UserWarning, match="'title', line 2: a carriage return is read as a space"):
        data = load(rows, items_file=str(path))
    assert data.items["title"].tolist() == ["one two", "B", "C"]


def test_lines_are_counted_over_line_ends_in_quotes(tmp_path):
    text = 'user,item,note,timestamp\n1,a,"x\ny\r\n""z""",1\n\n1,b,5" pipe,2\n1,c,d,soon\n'
    refused(write(tmp_path / "a.csv", text), "column 'timestamp', line 7: soon")
    refused(write(tmp_path / "b.csv", text + "1,2,3,4,5\n"), "line 8 has 5 cells and the header 4")
    refused(write(tmp_path / "c.csv", text + '1,2,"3,4\n5\n'), "a quote in line 8 has no end")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252"]
)
def test_encodings(tmp_path, encoding):
    text = "user,item\nJosé,a\nJosé,café\n"
    path = write(tmp_path / "a.csv", text, encoding)
    if encoding in ("latin-1", "cp1252"):
        refused(path, "line 2, byte 13, 0xe9, is not utf-8", "--encoding latin-1")
        data = load(path, encoding=encoding)
    else:
        data = load(path)
    assert raw(data, "item") == ["a", "café"]
    assert data.users["raw_id"].tolist() == ["José"]


def test_text_without_a_mark_in_two_bytes_is_told(tmp_path):
    path = write(tmp_path / "a.csv", "user,item\n1,2\n", "utf-16-le")
    refused(path, "zero byte is in line 1", "--encoding utf-16-le")
    assert load(path, encoding="utf-16-le").num_users == 1


# Options


def test_own_names_of_columns(tmp_path):
    text = "Customer ID,SKU,item,Stars,When\n1,a,x,5,10\n1,b,y,3,20\n2,a,z,1,30\n"
    path = write(tmp_path / "a.csv", text)
    names = {"user": "Customer ID", "item": "SKU", "rating": "Stars", "timestamp": "When"}
    data = load(path, columns=names)
    assert raw(data, "item") == ["a", "b", "a"]
    assert data.interactions["rating"].tolist() == [5, 3, 1]
    words = [f"{ours}={theirs}" for ours, theirs in names.items()]
    assert load(path, columns=words).digest == data.digest
    frame = pd.read_csv(path)
    assert load(frame, columns=names).digest == data.digest
    frame.to_parquet(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", columns=names).digest == data.digest
    refused(path, "no column 'user'", "--columns user=")
    refused(path, '--columns user="Kunde": no table has that column', columns={"user": "Kunde"})


def test_own_names_in_a_large_parquet(tmp_path, monkeypatch):
    table = pd.DataFrame({"who": [1, 2, 2], "user": [9, 9, 9], "item": ["a", "b", "a"]})
    table.to_parquet(tmp_path / "a.parquet")
    expected = load(tmp_path / "a.parquet", columns={"user": "who"}).digest
    monkeypatch.setattr(columns, "ROWS", 0)
    plain = {"duplicates": "first"}
    assert load(tmp_path / "a.parquet", **plain).num_users == 1
    assert load(tmp_path / "a.parquet", columns={"user": "who"}).digest == expected
    assert load(tmp_path / "a.parquet", **plain).num_users == 1


def test_a_name_may_be_own_in_one_table_only(tmp_path):
    TOY.to_parquet(tmp_path / "interactions.parquet")
    write(tmp_path / "items.csv", "SKU,title\na,A\nb,B\n")
    data = load(tmp_path, columns={"item": "SKU"})
    assert data.items["title"].tolist() == ["A", "B"]


def test_a_message_shows_what_a_file_holds_in_one_line(tmp_path):
    path = write(tmp_path / "a.csv", 'user,item,split\n1,2,"\x1b[2J\n\rlater"\n')
    refused(path, r"line 2: \x1b[2J\n\rlater is not a split")
    refused(write(tmp_path / "b.csv", "user,item,split\n1,2," + "x" * 10**5), "line 2: xxx")
    wide = ",".join(f"column {number}" for number in range(10**4))
    with pytest.raises(DataError, match="no column 'user'") as error:
        load(write(tmp_path / "c.csv", f"{wide}\n"))
    assert len(str(error.value)) < 1500


def test_own_names_of_a_table_of_items(tmp_path):
    items = write(tmp_path / "products.tsv", "SKU\tProduct Name\na\tA\nb\tB\nc\tC\n")
    rows = write(tmp_path / "a.csv", ROWS.replace("item", "SKU"))
    names = {"item": "SKU", "title": "Product Name"}
    data = load(rows, columns=names, items_file=str(items))
    assert data.items["title"].tolist() == ["A", "B", "C"]
    refused(rows, 'title="Product Name": no table has that column', columns=names)


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        ({"columns": ["item"]}, ["'item': write OURS=YOURS"]),
        ({"columns": ["itme=SKU"]}, ["there is no column 'itme'; the nearest is 'item'"]),
        ({"columns": ["item=a", "item=b"]}, ["item is 'a' already"]),
        ({"columns": ["item=a", "user=a"]}, ["'a' can be one column only"]),
        ({"duplicates": "newest"}, ["duplicates = 'newest'", "'first', 'last'"]),
        ({"encoding": "latin1000"}, ["encoding = 'latin1000'", "latin-1"]),
        ({"encoding": "hex"}, ["encoding = 'hex'"]),
        ({"min_rating": "4"}, ["min_rating = '4': expected float or none"]),
        ({"min_rating": float("nan")}, ["min_rating = nan: must be finite"]),
        ({"unpack_limit": -1.0}, ["unpack_limit = -1.0: must be at least 0"]),
        ({"min_ratings": 4}, ["min_ratings: no such option", "'min_rating'"]),
        ({"items_file": "nowhere.csv"}, ["nowhere.csv: is no table of items"]),
    ],
)
def test_a_wrong_option_is_named(tmp_path, wrong, parts):
    refused(write(tmp_path / "a.csv", ROWS), *parts, **wrong)


def test_options_are_of_no_use_where_nothing_is_read():
    refused("synthetic", "min_rating = 4.0: nothing is read", min_rating=4)
    data = synthetic(users=20, items=20, clients=2, length=5)
    assert load(data) is data
    refused(data, "duplicates = 'last': a Dataset is read already", duplicates="last")
    refused(data, "items or users", items=TOY)
    with pytest.raises(SettingError, match="encoding = 'latin-1': a Dataset is read already"):
        given_data(data, {"encoding": "latin-1", "rounds": 3})
    assert given_data(data, {"rounds": 3}) is data
    assert given_data(TOY, {"encoding": "latin-1"}) is TOY
    assert given_data("synthetic", {}) is given_data(None, {}) is None


def test_low_ratings_are_left_out_with_their_users_and_items(tmp_path):
    path = write(tmp_path / "a.csv", ROWS + "u3,d,3.5,50\n")
    data = load(path, min_rating=4)
    assert raw(data, "user") == ["u1", "u2"]
    assert data.items["raw_id"].tolist() == ["a"]
    items = pd.DataFrame({"item": list("abcd")})
    assert load(path, min_rating=4, items=items).num_items == 4
    assert len(load(path, min_rating=3.5).interactions) == 3
    refused(path, "none is 6 or more, the highest is 5", min_rating=6)
    refused(write(tmp_path / "b.csv", ROWS + "u3,d,good,50\n"), "line 6: good", min_rating=4)
    refused(TOY, "--min-rating 4 needs a column 'rating'", min_rating=4)


REPEATS = "user,item,rating,timestamp\nu,a,5,30\nu,b,1,15\nu,a,2,20\nu,a,1,40\n"


@pytest.mark.parametrize(
    ("how", "kept"),
    [("first", [(1, 15), (2, 20)]), ("last", [(1, 15), (1, 40)]), ("sum", [(1, 15), (8, 20)])],
)
def test_what_a_repeated_pair_becomes(tmp_path, how, kept):
    path = write(tmp_path / "a.csv", REPEATS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = load(path, duplicates=how).interactions
    assert sorted(zip(rows["rating"], rows["timestamp"], strict=True)) == kept
    untimed = pd.read_csv(path).drop(columns="timestamp")
    rows = load(untimed, duplicates=how).interactions
    rating = {"first": 5, "last": 1, "sum": 8}[how]
    assert rows["rating"][rows["item"] == 0].tolist() == [rating]
    counted = load(untimed.drop(columns="rating"), duplicates=how).interactions
    assert ("rating" in counted) == (how == "sum")
    assert how != "sum" or counted["rating"].tolist() == [3, 1]


def test_repeats_can_be_an_error_and_ratings_are_compared_after_them(tmp_path):
    path = write(tmp_path / "a.csv", REPEATS)
    refused(path, "'item', line 4: a repeats an earlier row", "--duplicates", duplicates="error")
    assert len(load(path, duplicates="sum", min_rating=8).interactions) == 1
    refused(path, "none is 3 or more, the highest is 2", duplicates="first", min_rating=3)


def test_options_are_settings_of_a_run(tmp_path):
    words = [
        "--columns",
        "user=Customer ID",
        "item=SKU",
        "--min-rating",
        "4",
        "--duplicates",
        "sum",
    ]
    words += ["--items-file", "items.csv", "--encoding", "latin-1", "--unpack-limit", "9"]
    run, _ = read_settings("popularity", None, words)
    assert run.columns == ("user=Customer ID", "item=SKU")
    assert (run.min_rating, run.duplicates, run.encoding, run.unpack_limit) == (
        4,
        "sum",
        "latin-1",
        9,
    )
    assert run.items_file.endswith("/items.csv") and run.items_file.startswith("/")
    stored = json.loads(json.dumps(run.reading()))
    assert read_settings("popularity", None, stored)[0] == run
    assert Reading(**run.reading()).reading() == run.reading()
    toml = write(tmp_path / "a.toml", 'columns = {user = "Customer ID", item = "SKU"}\n')
    assert read_toml(toml, "popularity")[1] == {"columns": run.columns}
    assert read_words("popularity", ["--no-mask-history"]) == {"mask_history": False}


def test_a_run_reads_as_its_settings_say(tmp_path):
    data = synthetic(users=30, items=20, clients=3, length=9).interactions
    rating = np.where(data["user"] % 3 == 0, 1, 5)
    shop = data[["user", "item", "timestamp"]].assign(Stars=rating, client=data["item"])
    shop = shop.rename(columns={"user": "Customer ID", "item": "SKU"})
    names = ("user=Customer ID", "item=SKU", "rating=Stars")
    run = RunConfig(columns=names, min_rating=4.0, partition="blocks", clients=2)
    with pytest.warns(UserWarning, match="'client'.*second client.*left out"):
        framed = prepare(run, shop)
    assert framed.sizes.users == 20
    shop.to_csv(tmp_path / "shop.csv", index=False)
    with pytest.warns(UserWarning, match="second client"):
        filed = prepare(
            RunConfig(
                **{**run.reading(), "data": str(tmp_path / "shop.csv")},
                partition="blocks",
                clients=2,
            )
        )
    assert filed.record["data"]["digest"] == framed.record["data"]["digest"]
    with pytest.raises(DataError, match="second client"):
        prepare(RunConfig(columns=names), shop)


# Frames


def test_a_frame_is_read_like_a_table(tmp_path):
    TOY.to_csv(tmp_path / "a.csv", index=False)
    expected = load(tmp_path / "a.csv")
    before = TOY.copy()
    data = load(TOY)
    assert data.name == "DataFrame"
    assert data.digest == expected.digest
    for other in (
        TOY.set_index("user"),
        TOY.set_index(["user", "item"]),
        TOY.iloc[:, ::-1],
        TOY.set_axis([5, 5, 9]),
    ):
        assert load(other).digest == expected.digest
    described = load(TOY, items=pd.DataFrame({"item": ["b", "a", "z"], "title": ["B", "A", "Z"]}))
    assert described.items["title"].tolist() == ["A", "B", "Z"]
    assert load(TOY, users=pd.DataFrame({"user": [9, 8, 7]})).num_users == 3
    pd.testing.assert_frame_equal(TOY, before)
    for backend in ("numpy_nullable", "pyarrow"):
        assert load(TOY.convert_dtypes(dtype_backend=backend)).digest == expected.digest
    assert load(TOY.astype({"item": "category", "user": "string"})).digest == expected.digest
    refused(TOY, "the frame of users", "1 ids", users=pd.DataFrame({"user": [7]}))
    refused(TOY.drop(columns="item"), "the frame: no column 'item'")
    refused(TOY.head(0), "no interactions")
    refused(TOY.assign(user=[7, None, 8]), "the frame, column 'user', row 1", "is missing")
    refused(pd.concat([TOY, TOY[["user"]]], axis=1), "could each be 'user'")


# Packed, in parts, split


PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACK)
def test_text_may_be_compressed(tmp_path, suffix):
    expected = load(write(tmp_path / "ratings.csv", ROWS))
    content = PACK[suffix](ROWS.encode())
    if suffix != ".zst":  # several members in a row are one text
        cut = len("user,item,rating,timestamp\n")
        content = PACK[suffix](ROWS[:cut].encode()) + PACK[suffix](ROWS[cut:].encode())
    (tmp_path / f"ratings.csv{suffix}").write_bytes(content)
    data = load(tmp_path / f"ratings.csv{suffix}")
    assert (data.name, data.digest) == ("ratings", expected.digest)
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / f"interactions.tsv{suffix}").write_bytes(
        PACK[suffix](ROWS.replace(",", "\t").encode())
    )
    (folder / f"items.csv{suffix}").write_bytes(PACK[suffix](b"item,title\na,A\nb,B\nc,C\n"))
    assert load(folder).items["title"].tolist() == ["A", "B", "C"]
    write(folder / "items.tsv", "item\ttitle\na\tplain\nb\tB\nc\tC\n")  # before a packed one
    assert load(folder).items["title"].tolist() == ["plain", "B", "C"]
    typed = ROWS.replace(",", "\t").replace(
        "user\titem\trating\ttimestamp",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    )
    (tmp_path / f"ml.inter{suffix}").write_bytes(PACK[suffix](typed.encode()))
    (tmp_path / f"ml.item{suffix}").write_bytes(PACK[suffix](b"item_id:token\ttitle:token\nb\tB\n"))
    data = load(tmp_path / f"ml.inter{suffix}")
    assert (data.name, data.items["title"].tolist()) == ("ml", ["", "B", ""])


@pytest.mark.parametrize("place", ["log", "log.parquet", "log/interactions.parquet"])
@pytest.mark.parametrize("hive", [False, True])
def test_a_table_may_be_a_folder_of_parquets(tmp_path, place, hive):
    table = TOY.assign(split=[0, 1, 2], note="x")
    folder = tmp_path / place
    if hive:
        parquet.write_to_dataset(pa.Table.from_pandas(table), folder, partition_cols=["split"])
    else:
        folder.mkdir(parents=True)
        table.iloc[:2].to_parquet(folder / "part-0.parquet")
        table.iloc[2:].to_parquet(folder / "part-1.parquet")
        (folder / "_SUCCESS").write_text("")
    data = load(tmp_path / place.split("/")[0])
    assert data.name == "log"
    assert data.interactions["split"].tolist() == [0, 1, 2]
    assert raw(data, "item") == ["a", "b", "a"]


@pytest.mark.parametrize("rows", [0, 2**21])
def test_a_folder_above_a_parquet_is_no_column(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(columns, "ROWS", rows)
    for place in ("client=3/item=x/a.parquet", "split=train/log/part-0.parquet"):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        TOY.to_parquet(path)
        data = load(path.parent if place.endswith("part-0.parquet") else path)
        assert data.interactions.columns.tolist() == ["user", "item", "timestamp"]
        assert raw(data, "item") == ["a", "b", "a"]


def parts(folder, form, names=("train", "valid", "test"), stem=""):
    rows = pd.DataFrame({"user": [1, 1, 2, 1, 2, 1, 2], "item": [1, 2, 1, 3, 2, 4, 3]})
    rows["timestamp"] = range(7)
    folder.mkdir(exist_ok=True)
    held = {"train": rows.iloc[:3], "valid": rows.iloc[3:5], "test": rows.iloc[5:]}
    for name in names:
        own = held[{"dev": "valid", "validation": "valid"}.get(name, name)]
        path = folder / f"{stem}{name}{form}"
        if form == ".parquet":
            own.to_parquet(path)
        elif form.startswith(".inter"):
            typed = own.set_axis(["user_id:token", "item_id:token", "timestamp:float"], axis=1)
            typed.to_csv(path, index=False, sep="\t")
        else:
            own.to_csv(path, index=False, sep="\t" if form == ".tsv" else ",")
    return folder


@pytest.mark.parametrize("form", [".csv", ".tsv", ".parquet", ".inter", ".csv.gz"])
@pytest.mark.parametrize("middle", ["valid", "dev", "validation"])
def test_files_split_already_are_read_as_such(tmp_path, form, middle):
    stem = "ml." if form == ".inter" else ""
    folder = parts(tmp_path / "ml", form, ("train", middle, "test"), stem)
    if form == ".inter":
        write(folder / "ml.item", "item_id:token\ttitle:token\n1\tOne\n9\tNine\n")
    else:
        write(folder / "items.csv", "item,title\n" + "".join(f"{k},T{k}\n" for k in (1, 2, 3, 4)))
    data = load(folder)
    assert data.name == "ml"
    assert data.interactions["split"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert data.items["title"].tolist() == (
        ["One", "", "", ""] if stem else ["T1", "T2", "T3", "T4"]
    )
    told = f"one part of data that are split already: {stem}train.*, {stem}{middle}.*, {stem}test"
    for name in ("train", "test"):
        with pytest.warns(UserWarning, match=told):
            again = load(folder / f"{stem}{name}{form}")
        assert (again.name, again.digest) == ("ml", data.digest)
    assert split(data, "given").interactions["split"].tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_a_row_of_a_part_is_named_by_its_file(tmp_path):
    folder = parts(tmp_path / "ml", ".csv")
    write(folder / "test.csv", "user,item,timestamp\n1,4,5\n2,3,soon\n")
    refused(folder, f"{folder}, column 'timestamp', line 3 of test.csv: soon")
    assert "line 3 of test.csv" in examine(folder).problems[0]
    write(folder / "test.csv", "user,label\n1,4\n")
    refused(folder, "test.csv: no column 'item'")


def test_without_a_valid_part_rows_are_drawn_from_train(tmp_path):
    folder = parts(tmp_path / "ml", ".csv", ("train", "test"))
    assert load(folder).interactions["split"].tolist() == [0, 0, 0, 2, 2]
    with pytest.warns(
        UserWarning, match="no row is valid.*a fraction 0.5 of each user's train rows"
    ):
        rows = split(load(folder), "given", valid=0.5).interactions
    assert sorted(rows["split"][rows["user"] == 0]) == [0, 1, 2]
    assert rows["split"][rows["user"] == 1].tolist() == [0, 2]


def test_parts_that_are_no_one_split(tmp_path):
    folder = parts(tmp_path / "a", ".csv", ("train", "valid", "dev", "test"))
    refused(folder, "have one part twice")
    folder = parts(parts(tmp_path / "b", ".inter", stem="x."), ".inter", stem="y.")
    refused(folder, "several data sets, each in parts")
    with pytest.warns(UserWarning, match="split already: x.train"):
        assert load(folder / "x.test.inter").num_users == 2
    write(tmp_path / "x" / "ml.inter", "user_id:token\titem_id:token\n1\t2\n")
    refused(parts(tmp_path / "x", ".inter", stem="ml."), "several .inter files", "ml.inter")
    folder = parts(tmp_path / "c", ".csv", ("train",))
    assert "split" not in load(folder / "train.csv").interactions
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("train-0", "test-0"):  # no parts of one table
        TOY.to_parquet(folder / f"{name}.parquet")
    refused(folder, "no interactions.parquet", "train-0.parquet")
