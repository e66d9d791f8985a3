"""Files that are damaged or meant to do harm end in one line that names them, and soon."""

import bz2
import gzip
import lzma
import struct
import warnings
import zipfile
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from jaxrec.data import columns, load, unpack
from jaxrec.types import DataError

ROWS = "user,item,rating,timestamp\n" + "".join(
    f"u{k % 5},i{k % 7},{k % 5},{k}\n" for k in range(35)
)
RELEASE = {
    "ratings.dat": "1::2::5::30\n1::3::4::40\n2::2::1::50\n",
    "movies.dat": "2::A::x\n3::B::y\n",
}
PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    monkeypatch.delenv("JAXREC_DATA", raising=False)


@pytest.fixture
def small(monkeypatch):
    """A file may unpack to 1 MB, or 200 times its size."""
    monkeypatch.setattr(unpack, "ALWAYS", 10**6)


def refusal(path, **options):
    with pytest.raises(DataError) as error:
        load(path, **options)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def zipped(path, content=RELEASE, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize("inner", ["ratings.dat", "movies.dat"])
def test_a_zip_is_measured_before_it_is_unpacked(tmp_path, small, monkeypatch, inner):
    path = zipped(tmp_path / "a.zip", RELEASE | {inner: bytes(3 * 10**6)})
    monkeypatch.setattr(zipfile.Path, "read_bytes", None)
    message = refusal(path)
    assert "unpacks to 0.003" in message and "above the bound of 0.001 GB" in message
    assert "--unpack-limit" in message
    monkeypatch.undo()
    with pytest.raises(DataError, match="table of text"):
        load(path, unpack_limit=0.01)
    assert "above the bound of 0.0001 GB" in refusal(path, unpack_limit=0.0001)


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_text_is_unpacked_up_to_a_bound(tmp_path, small, monkeypatch, suffix):
    bound = unpack.bound
    path = tmp_path / f"a.csv{suffix}"
    path.write_bytes(PACK[suffix](bytes(5 * 10**6)))
    read = []
    monkeypatch.setattr(unpack, "_CHUNK", 10**5)
    monkeypatch.setattr(unpack, "bound", lambda *given: read.append(1) or bound(*given))
    message = refusal(path)
    assert "unpacks to 0.00" in message and "GB and more" in message
    assert len(read) <= 12  # of 50 chunks, those up to the bound
    assert "zero byte" in refusal(path, unpack_limit=0.01)
    path.write_bytes(PACK[suffix](ROWS.encode()))
    assert load(path).num_users == 5
    assert "--unpack-limit" in refusal(path, unpack_limit=1e-7)


def test_the_bound_is_as_documented():
    assert unpack.bound(10**3, 0) == 10**8
    assert unpack.bound(10**6, 0) == 2 * 10**8
    assert unpack.bound(10**9, 0) == 4 * 10**9
    assert unpack.bound(10**9, 7) == 7 * 10**9


def test_a_parquet_of_one_value_is_measured_by_its_rows(tmp_path, small):
    rows = pa.table({name: np.zeros(10**6, "int8") for name in ("user", "item")})
    parquet.write_table(rows, tmp_path / "a.parquet")
    assert "unpacks to 0.008 GB" in refusal(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", unpack_limit=1, duplicates="first").num_users == 1


def changed(path, local, central, value):
    """The zip with a 16-bit field of every header set; the places are within the headers."""
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", local), (b"PK\1\2", central)):
        at = -1
        while (at := data.find(mark, at + 1)) >= 0:
            data[at + place : at + place + 2] = struct.pack("<H", value)
    path.write_bytes(data)
    return path


def test_an_encrypted_zip_and_unknown_methods_are_told(tmp_path):
    path = changed(zipped(tmp_path / "a.zip"), 6, 8, 1)
    assert "ratings.dat is encrypted. Unpack it" in refusal(path)
    for method in (9, 12, 14, 99):
        path = changed(zipped(tmp_path / "b.zip"), 8, 10, method)
        assert f"ratings.dat is compressed by method {method} and not by 8" in refusal(path)
    path = zipped(tmp_path / "c.zip", method=zipfile.ZIP_LZMA)
    assert "method 14" in refusal(path)
    assert load(zipped(tmp_path / "d.zip", method=zipfile.ZIP_STORED)).num_users == 2


def test_a_zip_that_understates_its_content_is_damaged(tmp_path):
    path = zipped(tmp_path / "a.zip", RELEASE | {"ratings.dat": RELEASE["ratings.dat"] * 999})
    changed(path, 22, 24, 9)
    assert "cannot be read as a table of text" in refusal(path)


def test_compressed_text_without_its_suffix_and_the_reverse(tmp_path):
    for suffix, pack in PACK.items():
        (tmp_path / "a.csv").write_bytes(pack(ROWS.encode()))
        assert f"let its name end with {suffix}" in refusal(tmp_path / "a.csv")
        path = tmp_path / f"b.csv{suffix}"
        path.write_text(ROWS)
        assert "cannot be read as a table of text" in refusal(path)
        path.write_bytes(pack(ROWS.encode())[:-6])
        assert "cannot be read as a table of text" in refusal(path)


def framed():
    """The rows as a frame."""
    lines = [line.split(",") for line in ROWS.split()]
    return pd.DataFrame(lines[1:], columns=lines[0]).astype({"rating": float, "timestamp": int})


@pytest.mark.parametrize(
    "form", [".csv", ".parquet", ".zip", *(f".csv{suffix}" for suffix in PACK)]
)
def test_flipped_bytes_are_read_or_refused(tmp_path, form):
    path = tmp_path / f"good{form}"
    if form == ".zip":
        zipped(path)
    elif form == ".parquet":
        framed().to_parquet(path)
    else:
        path.write_bytes(PACK.get(form[4:], bytes)(ROWS.encode()))
    good, random = path.read_bytes(), np.random.default_rng(0)
    bad, refused = tmp_path / f"bad{form}", 0
    for number in range(40):
        data = bytearray(good)
        for _ in range(1 + number % 4):
            data[random.integers(len(data))] ^= 1 << int(random.integers(8))
        if number % 5 == 0:
            del data[int(random.integers(len(data))) :]
        bad.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load(bad)
            except DataError as error:
                assert str(tmp_path) in str(error) and "\n" not in str(error)
                refused += 1
    assert refused >= (4 if form == ".csv" else 20)


ODD = {
    "binary": pa.array([b"a", b"\xff"]),
    "fixed": pa.array([b"ab", b"cd"], pa.binary(2)),
    "coded binary": pa.array([b"a", b"b"]).dictionary_encode(),
    "duration": pa.array([1, 2], pa.duration("s")),
    "list": pa.array([[1], [2]]),
    "struct": pa.array([{"a": 1}, {"a": 2}]),
    "map": pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())),
    "null": pa.nulls(2),
    "time": pa.array([1, 2], pa.time32("s")),
    "date": pa.array([1, 2], pa.date32()),
    "zone": pa.array([1, 2], pa.timestamp("s", "Europe/Berlin")),
    "decimal": pa.array([Decimal("1.5"), Decimal("2.5")]),
    "whole decimal": pa.array([Decimal(1), Decimal(2)], pa.decimal128(30)),
    "huge decimal": pa.array([Decimal(10**37), Decimal(2)], pa.decimal128(38)),
    "bool": pa.array([True, False]),
    "half": pa.array(np.float16([1, 2])),
    "large": pa.array(["1", "2"], pa.large_string()),
    "view": pa.array(["1", "2"], pa.string_view()),
    "year 9999": pa.array([253402300799 * 10**6, 0], pa.timestamp("us")),
}
WRONG = {"binary", "fixed", "coded binary", "duration", "list", "struct", "map", "null", "time"}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize(
    "column", ["user", "item", "timestamp", "rating", "client", "split", "domain"]
)
@pytest.mark.parametrize("large", [False, True])
def test_columns_of_every_type_are_read_or_refused(tmp_path, monkeypatch, kind, column, large):
    if large:
        monkeypatch.setattr(columns, "ROWS", 0)
    path = tmp_path / "a.parquet"
    table = {"user": pa.array(["u", "v"]), "item": pa.array([1, 2]), column: ODD[kind]}
    parquet.write_table(pa.table(table), path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            data, message = load(path), ""
        except DataError as error:
            data, message = None, str(error)
    told = message or "".join(str(each.message) for each in caught)
    if kind in WRONG or told:
        assert str(path) in told and f"column '{column}'" in told and "\n" not in told
    if column in ("rating", "domain"):
        assert not message and (kind not in WRONG or column not in data.interactions)
    elif kind in WRONG:
        assert message


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("coded", [False, True])
def test_text_of_a_parquet_that_is_no_utf_8_is_told(tmp_path, monkeypatch, large, coded):
    if large:
        monkeypatch.setattr(columns, "ROWS", 0)
    users = pa.array([b"u", b"\xff"]).view(pa.string())
    users = users.dictionary_encode() if coded else users
    parquet.write_table(pa.table({"user": users, "item": [1, 2]}), tmp_path / "a.parquet")
    assert "cannot be read as a parquet file" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_columns_that_jaxrec_does_not_know_may_hold_anything(tmp_path, kind):
    rows = pa.table({"user": pa.array(["u", "v"]), "item": pa.array([1, 2]), "note": ODD[kind]})
    parquet.write_table(rows, tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").interactions.columns.tolist() == ["user", "item"]
