"""Comparisons say what SciPy and plain loops say, and refuse what cannot be compared."""

import csv as reader
import importlib
import io
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

import jaxrec
from jaxrec import files
from jaxrec.cli.command import command
from jaxrec.data.synthetic import synthetic
from jaxrec.evaluation.significance import Test, holm, paired_test
from jaxrec.methods import METHODS
from jaxrec.report import comparison_tables
from jaxrec.report.comparison import DATA, compare
from jaxrec.training.settings import RunConfig, build, read_words
from jaxrec.types import CheckpointError, DataError, SettingError

module = importlib.import_module("jaxrec.cli.compare")
SETTINGS = {
    "monitor": "NDCG@10", "ranking": "users", "candidates": 0, "listed": False,
    "mask_history": True, "split": "ratio", "baselines": ["x"], "width": 8,
}  # fmt: skip
rng = np.random.default_rng(0)
VALUES = {name: rng.random((3, 50)).astype(np.float32).astype(float) for name in "abc"}  # [seed, U]
VALUES["b"] += 0.3
VALUES["c"][:, :20] = VALUES["a"][:, :20]  # ties


@pytest.fixture
def write(tmp_path):
    """Writes the folder of an ended run."""

    def write(name, method, values, seed=0, digest=None, users=None, ended=True, **settings):
        folder = tmp_path / name
        number = np.arange(len(values))
        table = pd.DataFrame({"user": number, "client": number, "NDCG@10": values})
        if users is not None:
            table = table.assign(user=users, item=np.arange(len(values)))
        record = {
            "method": method, "settings": SETTINGS | {"seed": seed} | settings,
            "data": {"digest": digest or f"digest of {seed}"}, "versions": {},
        }  # fmt: skip
        files.write_json(folder / "config.json", record)
        files.write_users(folder / "users.parquet", table)
        seconds = {"seconds/compile": 1.0, "seconds/train": seed, "seconds/evaluate": 0.5}
        means = {
            "test/NDCG@10": table["NDCG@10"].mean(),
            "bytes/per_client": 2e6,
            "bytes/total": 2e8,
        }
        result = means | seconds | {"rounds": 2, "best_round": 1, "privacy": "secure_sum"}
        rows = [
            {"round": n, "bytes": n * 1e8, "valid/NDCG@10": n / 3 - 0.02, "seconds": 1.0}
            for n in (1, 2, 3)
        ]
        for row in rows:
            files.append_row(folder / "metrics.jsonl", row)
        if ended:
            files.write_json(folder / "result.json", result)
        return folder

    return write


@pytest.fixture
def runs(write):
    return [
        write(f"{name}{seed}", name, values[seed], seed)
        for name, values in VALUES.items()
        for seed in range(3)
    ]


def test_a_comparison_is_scipy_on_the_users_means_over_seeds(runs):
    found = compare(runs)
    assert list(found.table.index) == ["a", "b", "c"]
    assert (found.metric, found.users) == ("NDCG@10", 50)
    p = {}
    for name, row in found.table.iterrows():
        means = VALUES[name].mean(1)
        assert row["runs"] == 3
        assert row["mean"] == pytest.approx(means.mean())
        assert row["sd"] == pytest.approx(means.std(ddof=1))
        assert (row["mb_per_client"], row["seconds"]) == (2.0, 2.5)
        assert (row["mb_to_best"], row["mb_to_enough"]) == (1.0, 3.0)
        if name == "a":
            assert row[list(Test._fields)].isna().all()
            continue
        each = VALUES[name].mean(0) - VALUES["a"].mean(0)
        each[abs(each) < 1e-9] = 0
        assert row["difference"] == pytest.approx(each.mean())
        assert row["cohen_d"] == pytest.approx(each.mean() / each.std(ddof=1))
        p[name] = row["p"]
        assert row["p"] == pytest.approx(stats.wilcoxon(each[each != 0]).pvalue)
        # of all Walsh averages of the changed users: the share above 0 less that below
        pairs = itertools.combinations_with_replacement(each[each != 0], 2)
        signs = [np.sign(one + other) for one, other in pairs]
        assert row["rank_biserial"] == pytest.approx(np.mean(signs))
        assert row["low"] < row["difference"] < row["high"]
    assert found.table.loc["b", "p_holm"] == pytest.approx(2 * p["b"])
    assert found.table.loc["c", "p_holm"] == pytest.approx(p["c"])


def test_the_order_of_runs_and_users_changes_no_mean(runs, write):
    shuffled = pd.read_parquet(runs[3] / "users.parquet").iloc[::-1]
    files.write_users(runs[3] / "users.parquet", shuffled)
    left, right = compare(runs).table, compare([*runs[2::-1], *runs[:2:-1]]).table
    pd.testing.assert_frame_equal(left, right.loc[left.index])


def test_the_interval_is_that_of_a_mean():
    each = pd.Series(np.random.default_rng(1).normal(0.1, 1, 4000))
    found = paired_test(each, resamples=4000)
    half = 1.96 * each.std(ddof=0) / len(each) ** 0.5
    assert found.low == pytest.approx(each.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(each.mean() + half, abs=0.1 * half)


def test_rows_of_a_user_are_drawn_together():
    users = pd.Series(VALUES["a"][0] - VALUES["c"][1])
    assert paired_test(users, 200) == pytest.approx(paired_test(users.repeat(4), 200))
    rows = pd.Series([1.0, 1, 1, -1], index=pd.Index([0, 0, 0, 1]))
    assert paired_test(rows, 200)[:3] == (0.5, -1, 1)


def test_nothing_changed_is_no_effect():
    found = paired_test(pd.Series([0.0] * 9 + [1e-17]), 100)
    assert found == (0, 0, 0, 1, 0, 0)
    with pytest.raises(DataError, match="1 user: a paired test needs at least 2"):
        paired_test(pd.Series([1.0]), 100)


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.9, 0.5])), [1, 1])
    assert holm(np.array([])).shape == (0,)


def test_baselines_are_runs_and_count_once(write):
    both = [write("a", "a", VALUES["a"][0]), write("b", "b", VALUES["b"][0])]
    for run in both:
        write(f"{run.name}/baselines/c", "c", VALUES["c"][0], baselines=[])
    assert list(compare(both).table.index) == ["a", "b", "c"]
    with pytest.raises(SettingError, match="the same run twice, a with seed 0"):
        compare([*both, write("again", "a", VALUES["a"][0])])


def test_settings_that_vary_are_in_the_label(write):
    write("a", "a", VALUES["a"][0])
    runs = [
        write(f"{name}{seed}", method, VALUES[name][seed], seed, "same", width=width)
        for seed in range(2)
        for name, method, width in (("a", "a", 8), ("b", "a", 16), ("c", "c", 8))
    ]
    assert list(compare(runs).table.index) == ["a width=8", "a width=16", "c"]
    assert list(compare(runs[1::3]).table.index) == ["a"]


def test_seeds_on_the_same_data_need_not_be_the_same(write):
    runs = [write(f"a{seed}", "a", VALUES["a"][seed], seed, "same") for seed in range(2)]
    runs.append(write("b2", "b", VALUES["b"][2], 2, "same"))
    each = VALUES["b"][2] - VALUES["a"][:2].mean(0)
    assert compare(runs).table.loc["b", "difference"] == pytest.approx(each.mean())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"digest": "another", "split": "time"},
            r"split = 'ratio' and 'time'; train b again as .*/a was, with --split ratio$",
        ),
        ({"digest": "another"}, "the data have changed between them"),
        ({"seed": 1}, "seed = 0 and 1"),
        ({"ranking": "rows"}, "different protocols: ranking = 'users' and 'rows'"),
        (
            {"candidates": 99, "mask_history": False},
            r"candidates = 0 and 99, .*; train b again .* --candidates 0 --mask_history$",
        ),
        ({"monitor": "MRR"}, "monitor = 'NDCG@10' and 'MRR'"),
    ],
)
def test_what_cannot_be_compared_is_refused(write, other, message):
    runs = [write("a", "a", VALUES["a"][0]), write("b", "b", VALUES["b"][0], **other)]
    with pytest.raises(DataError, match=message):
        compare(runs)


@pytest.mark.parametrize("name", METHODS)
def test_by_default_every_method_reads_the_same_rows(name):
    own, shared = build(name, {})[0], RunConfig()
    assert [getattr(own, each) for each in DATA] == [getattr(shared, each) for each in DATA]


@pytest.mark.slow
def test_default_runs_compare_or_the_settings_that_make_them_are_named(tmp_path):
    dataset = synthetic(users=60, items=60, clients=6, length=16)

    def run(name, method, **settings):
        out, quick = tmp_path / name, {"rounds": 1, "baselines": (), "progress": False}
        jaxrec.train(method, dataset, out=out, **quick, **settings)
        return out

    methods = ("fedavg", "sequential", "popularity")
    runs = [run(name, name) for name in methods]
    assert tuple(compare(runs).table.index) == methods
    agents = run("agents", "agentcf")
    with pytest.raises(DataError, match=r"protocols: monitor = .*ranking = ") as refused:
        compare([runs[0], agents])
    words = str(refused.value).rpartition("with ")[2].split()
    assert words[::2] == ["--monitor", "--ranking", "--candidates"]
    settings = read_words("agentcf", words)
    assert len(compare([*runs, run("alike", "agentcf", **settings)]).table) == 4


def test_drawn_negatives_tell_seeds_apart(write):
    runs = [
        write(f"a{seed}", "ab"[seed], VALUES["a"][seed], seed, "same", candidates=9)
        for seed in range(2)
    ]
    with pytest.raises(DataError, match="seed = 0 and 1"):
        compare(runs)


def test_what_is_no_ended_run_is_refused(write, tmp_path):
    with pytest.raises(CheckpointError, match=r"absent/config.json: no run"):
        compare([tmp_path / "absent"])
    with pytest.raises(CheckpointError, match=r"result.json: missing, the run has not ended"):
        compare([write("a", "a", VALUES["a"][0], ended=False)])
    with pytest.raises(SettingError, match=r"config.json: candidates = 'few': expected int"):
        compare([write("few", "a", VALUES["a"][0], candidates="few")])
    with pytest.raises(SettingError, match="the nearest is 'NDCG@10'"):
        compare([write("b", "b", VALUES["b"][0])], metric="NDCG@20")
    with pytest.raises(SettingError, match="0 runs"):
        compare([])


def test_runs_that_have_not_ended_are_left_out_with_a_warning(write):
    runs = [write(name, name, VALUES[name][0]) for name in "ab"]
    runs.append(write("c", "c", VALUES["c"][0], ended=False))
    write("a/baselines/d", "d", VALUES["c"][0], ended=False)
    (runs[1] / "baselines" / "begun").mkdir(parents=True)  # by a run that was killed at once
    with pytest.warns(UserWarning) as told:
        assert list(compare(runs).table.index) == ["a", "b"]
    left_out = [str(each.message) for each in told]
    assert len(left_out) == 2
    for message, folder in zip(left_out, (runs[2], runs[0] / "baselines" / "d"), strict=True):
        assert message.startswith("left out of the comparison: ")
        assert message.endswith(f"continue with: python -m jaxrec.train --resume {folder}")


def test_every_format_shows_the_numbers(runs):
    found = compare(runs)
    row = found.table.loc["b"]
    numbers = [f"{row['mean']:.4f} ±{row['sd']:.4f}", "2.00", "2.5", "secure_sum"]
    numbers += ["1.00", "3.00", f"{row['difference']:+.4f}"]
    console = Console(file=io.StringIO(), width=80)
    console.print(*comparison_tables.terminal_tables(found))
    text = console.file.getvalue()
    assert all(number in text for number in numbers)
    (line,) = (
        line for line in comparison_tables.markdown(found).splitlines() if line.startswith("| b |")
    )
    assert [cell.strip() for cell in line.split("|")][2:10] == ["3", *numbers]
    (line,) = (
        line for line in comparison_tables.latex(found).splitlines() if line.startswith("b &")
    )
    assert line.endswith(r" \\")
    assert line.split(" & ")[2] == numbers[0].replace("±", r"$\pm$")
    first, second, _ = reader.DictReader(io.StringIO(comparison_tables.csv(found)))
    assert first["difference"] == ""
    assert float(second["p_holm"]) == row["p_holm"]
    assert comparison_tables.latex(compare(runs[:1])).count("&") == 2 * 7


def test_the_command_prints_a_table_or_one_line(runs, capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    run = lambda *words: command(module.Options, module.act, [*map(str, words)], module.ABOUT)
    assert run(*runs, "--format", "csv") == 0
    assert capsys.readouterr().out.startswith("method,runs,mean")
    for words, message in (
        ((), "no run folder given"),
        ((*runs, "--metrik", "MRR"), "--metrik: no such setting of this command; the nearest"),
        ((runs[0], runs[4]), "on which there is no run of b"),
    ):
        assert run(*words) == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("name", ["train", "recommend", "compare"])
def test_importing_a_command_leaves_the_function_callable(name):
    imported = importlib.import_module(f"jaxrec.{name}")
    assert getattr(jaxrec, name) is imported
    with pytest.raises((SettingError, CheckpointError), match=r"no method 'absent'|no run \("):
        imported(["absent"] if name == "compare" else "absent")
