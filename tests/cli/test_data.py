"""The check says what load says, past the first fault, and knows what each method needs."""

import importlib
from dataclasses import replace

import jax
import numpy as np
import pandas as pd
import pytest

from jaxrec.data import load, synthetic
from jaxrec.data.check import counts, examine, histogram, knows
from jaxrec.methods import METHODS
from jaxrec.training.prepared import prepare
from jaxrec.training.settings import build, reads
from jaxrec.types import DataError, SettingError

main = importlib.import_module("jaxrec.cli.data").main

BAD = """user_id,movieId,rating,timestamp,split
1,a,5,2020-01-01,0
1,b,x,2020-01-02,0
,b,3,2020-01-02,0
1,c,3,sometime,0
2,a,1,2020-01-03,train
2,a,1,2020-01-03,train
2,b,1,2020-01-04,7
2,c,2,2020-01-05,1
3,c,2,2020-01-05,2
"""


@pytest.fixture(autouse=True)
def no_root(request, monkeypatch):
    if "realdata" not in request.keywords:
        monkeypatch.delenv("JAXREC_DATA", raising=False)


def write(tmp_path, text, name="bad.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_every_fault_is_named_at_once_with_line_value_and_remedy(tmp_path, capsys):
    path = write(tmp_path, BAD)
    found = examine(path)
    parts = [
        ("column 'user', line 4", "is missing: every row needs an id"),
        ("column 'timestamp', line 5: sometime", "ISO 8601"),
        ("column 'split', line 8: 7", "use 0 train, 1 valid, 2 test"),
        ("column 'item', line 7: a", "drop the repeats"),
        ("raw id 3", "has no train row"),
    ]
    assert len(found.problems) == len(parts)
    for problem, (place, remedy) in zip(found.problems, parts, strict=True):
        assert place in problem
        assert remedy in problem
    with pytest.raises(DataError) as error:
        load(path)
    assert str(error.value) == found.problems[0]
    assert found.dataset.interactions["user"].tolist() == [0, 0, 1, 1, 2]
    assert found.dataset.users["raw_id"].tolist() == [1, 2, 3]

    assert main(["check", str(path)]) == 2
    shown = capsys.readouterr().out
    assert all(f"wrong: {problem}\n" in shown for problem in found.problems)
    assert "5 to mend" in shown
    note = next(note for note in found.notes if "column 'rating', line 3: x is not a fin" in note)
    assert f"note: {note}\n" in shown and "left out" in note


def test_what_has_been_mended_as_told_has_no_fault_left(tmp_path):
    lines = BAD.splitlines()
    kept = [line for number, line in enumerate(lines, 1) if number not in (3, 4, 5, 7, 8, 10)]
    kept += ["2,d,4,2020-01-06,2"]
    found = examine(write(tmp_path, "\n".join(kept)))
    assert found.problems == []
    pd.testing.assert_frame_equal(
        found.dataset.interactions, load(tmp_path / "bad.csv").interactions
    )


def test_faults_of_every_table_of_a_folder(tmp_path):
    pairs = [(0, 0), (0, 1), (0, 90), *((u, i) for u in (0, 1) for i in range(2, 12))]
    rows = "user,item\n" + "".join(f"{user},{item}\n" for user, item in pairs)
    write(tmp_path, rows, "interactions.csv")
    items = "0,A,0\n1,B,x\n2,,0\n2,C,0\n" + "".join(f"{i},D,1\n" for i in range(3, 12))
    write(tmp_path, f"item,title,domain\n{items}", "items.csv")
    write(tmp_path, "user\n0\n1\n5\n", "users.csv")
    found = examine(tmp_path)
    twice, outside, alone = found.problems
    assert "items.csv, column 'item', line 5: 2 occurs twice" in twice
    assert any("items.csv, column 'domain', line 3: x" in note for note in found.notes)
    assert "interactions.csv, column 'item', line 4: 90 is not among the 12 ids" in outside
    assert "user 5 of the users' table has no interaction" in alone
    assert "--min-user 1" in alone
    assert "1 of 12 items have no text" in found.notes


def test_a_column_that_is_wrong_throughout_is_left_out_and_a_key_ends_the_check(tmp_path):
    rows = "user,item,rating\n" + "".join(f"{u},{i},good\n" for u in range(2) for i in range(9))
    for column, told in (("Order", "timestamp"), ("client_ID", "client"), ("time", "timestamp")):
        other = examine(write(tmp_path, rows.replace("rating", column).replace("good", "")))
        assert len(other.problems) == 1
        assert f"column '{told}', line 2" in other.problems[0]
        assert list(other.dataset.interactions) == ["user", "item"]
    found = examine(write(tmp_path, rows))
    assert found.problems == []
    assert "'rating', line 2: good is not a finite number (18 such rows in all)" in found.notes[0]
    assert list(found.dataset.interactions) == ["user", "item"]
    found = examine(write(tmp_path, "user,item\n,1\n,2\n"))
    assert found.dataset is None
    assert len(found.problems) == 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("who,what\n1,2\n", ["no column 'user'", "no column 'item'", "found ['who', 'what']"]),
        ("user;item\n1;2\n", ["separated by ';'", "write .csv with ','"]),
        ("user,item\n", ["no interactions"]),
        ("user,item,itemid\n1,2,3\n", ["could each be 'item'"]),
        ("1,2,5.0\n1,3,4.0\n", ["no column 'user'", "put a line with the columns' names before"]),
    ],
)
def test_what_cannot_be_read_at_all_is_one_problem(text, parts, tmp_path, capsys):
    path = write(tmp_path, text)
    found = examine(path)
    (problem,) = found.problems
    assert found.dataset is None
    assert all(part in problem for part in parts)
    with pytest.raises(DataError) as error:
        load(path)
    assert str(error.value) == problem
    assert main(["check", str(path)]) == 2
    assert capsys.readouterr().out == f"wrong: {problem}\n1 to mend.\n"


def test_values_that_no_column_can_hold_are_problems(tmp_path):
    path = write(tmp_path, "user,item,timestamp\n1,2,3\n1,3,1e30\n2,3,-2e19\n")
    problem = examine(path).problems[0]
    assert "column 'timestamp', line 3: 1e30 is outside 64 bits (2 such rows" in problem
    table = pd.DataFrame({"user": [1, 1e30], "item": [2, 3]})
    table.to_parquet(tmp_path / "large.parquet")
    problem = examine(tmp_path / "large.parquet").problems[0]
    assert "column 'user', row 1: 1e+30 is outside the whole numbers that a float" in problem
    table = pd.DataFrame({"user": [1, 1], "item": [[1], [2, 3]]})
    table.to_parquet(tmp_path / "lists.parquet")
    problem = examine(tmp_path / "lists.parquet").problems[0]
    assert "column 'item', row 0: [1] is neither text nor number" in problem


def test_options_of_reading_are_words_of_the_check(tmp_path, capsys):
    rows = "".join(f"{u},{i},{1 + i % 5},caf\u00e9\n" for u in range(4) for i in range(20))
    path = tmp_path / "shop.csv"
    path.write_bytes(("Customer ID,SKU,Stars,Note\n" + rows + rows[:10]).encode("latin-1"))
    words = ["--encoding", "latin-1", "--columns", "user=Customer ID", "item=SKU", "rating=Stars"]
    assert main(["check", str(path)]) == 2
    assert "--encoding latin-1" in capsys.readouterr().out
    assert main(["check", str(path), *words]) == 2
    assert "repeats an earlier row" in capsys.readouterr().out
    assert main(["check", str(path), *words, "--duplicates", "last", "--min-rating", "4"]) == 0
    shown = capsys.readouterr().out
    assert "32, sparsity" in shown and "--min-rating" not in shown
    assert main(["check", str(path), "--column", "user=x"]) == 2
    assert "the nearest is 'columns'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["check", "--help"])
    assert stop.value.code == 0
    assert "--items-file" in capsys.readouterr().out


def test_names_with_brackets_are_shown_as_they_are(tmp_path, capsys):
    path = write(tmp_path, "user,item\n1,2\n", "my [red] rows.csv")
    main(["check", str(path)])
    assert "my [red] rows" in capsys.readouterr().out


def test_what_is_wrong_with_the_whole_names_no_rows(tmp_path, capsys):
    items = pd.DataFrame({"item": [2, 3], "title": ["a", "b"]})
    users = pd.DataFrame({"user": [1, 2]})
    rows = pd.DataFrame({"user": [1, 1], "item": [2, 3]})
    for name, table in {"items": items, "users": users, "interactions": rows}.items():
        table.to_parquet(tmp_path / f"{name}.parquet")
    assert main(["check", str(tmp_path)]) == 2
    assert capsys.readouterr().out.endswith("2 to mend.\n")


def test_repeats_ties_and_short_histories_are_notes(tmp_path):
    text = "user,item,timestamp,rating\n" + "".join(f"7,{i},1,5\n" for i in range(9))
    found = examine(write(tmp_path, text + "7,1,2,4\n8,1,1,3\n8,2,1,1\n", "ties.csv"))
    assert found.problems == []
    repeats, ratings, ties, few = found.notes
    assert "1 rows repeat a (user, item) pair at another time, the first in line 11" in repeats
    assert "ratings are not read" in ratings
    assert ties.startswith("100% of the rows have the same time")
    assert few == "1 users have fewer than 3 rows: leave-one-out tests none of them"


def test_numbers_and_bars(capsys):
    data = synthetic(users=50, items=40, clients=5, length=12)
    numbers = counts(data)
    assert numbers["user"].sum() == numbers["item"].sum() == len(data.interactions)
    assert numbers["item"][3] == (data.interactions["item"] == 3).sum()
    assert histogram(np.array([0, 1, 1, 2, 3, 4, 9])) == [
        ("0", 1), ("1", 2), ("2 - 3", 2), ("4 - 7", 1), ("8 - 15", 1),
    ]  # fmt: skip
    assert histogram(np.array([1024, 2000])) == [("1,024 - 2,047", 2)]
    assert main(["check", "synthetic"]) == 0
    shown = capsys.readouterr().out
    for part in ("400", "300", "15,446, sparsity 87.128%", "2020-09-14 to 2021-12-04"):
        assert part in shown
    assert "2, of 150 and 150 items" in shown
    assert shown.endswith("Nothing is wrong.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "no such command"), (["chek", "x"], "'check'"), (["check"], "name one"),
     (["check", "a", "b"], "name one")],
)  # fmt: skip
def test_wrong_words_are_one_line(words, message, capsys):
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err


SMALL = {
    "fedcia": {"rank": 4},
    "llmd4rec": {"llm": "random", "llm_width": 8},
    "rqfedrec": {"codes": 4},
}
PARTS = {
    "order": lambda data: replace(data, interactions=data.interactions.drop(columns="timestamp")),
    "text": lambda data: replace(data, items=data.items[["item", "domain", "raw_id"]]),
    "domains": lambda data: replace(data, items=data.items.drop(columns="domain")),
}


def refusal(method, dataset, **settings):
    """Why a run of the method with its defaults does not begin; None if it does."""
    module = METHODS[method]
    run, config = build(method, {"text": "tfidf", **SMALL.get(method, {}), **settings})
    given = {"complete": lambda *args: ""} if method == "agentcf_text" else {}
    try:
        prepared = prepare(run, dataset, reads({method: config}), progress=False)
        config, _ = module.TRAITS.settled(config, prepared.data, prepared.forward)
        made = module.make(config, prepared.sizes, **given)
        module.TRAITS.check_data(config, prepared.data)
        init = made.init if not made.compiled else lambda *args: jax.eval_shape(made.init, *args)
        init(jax.random.key(0), prepared.data)
    except (DataError, SettingError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_needs_is_what_it_cannot_start_without(method):
    whole = synthetic(users=50, items=80, clients=5, length=12)
    needs = METHODS[method].TRAITS.needs
    assert knows(whole) == {"order": True, "text": True, "domains": True}
    assert refusal(method, whole) is None
    for part, without in PARTS.items():
        less = without(whole)
        assert knows(less)[part] is False
        refused = refusal(method, less)
        assert (refused is not None) == (part in needs), (part, refused)
    assert not set(needs) & set(METHODS[method].TRAITS.uses)


@pytest.mark.parametrize(
    ("method", "part", "settings"),
    [
        ("agentcf", "domains", {"ranking": "rows"}),
        ("agentcf_text", "domains", {"ranking": "rows"}),
        ("llmd4rec", "text", {"texts": False}),
    ],
)
def test_settings_that_make_up_for_what_is_missing(method, part, settings):
    less = PARTS[part](synthetic(users=50, items=80, clients=5, length=12))
    assert refusal(method, less) is not None
    assert refusal(method, less, **settings) is None


@pytest.mark.realdata
def test_a_real_dataset_has_nothing_wrong(data_root, capsys):
    assert main(["check", "fedcia-ml100k"]) == 0
    assert "Nothing is wrong." in capsys.readouterr().out
