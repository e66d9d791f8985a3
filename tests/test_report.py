"""Files are whole or absent; tables and summaries say what the results say."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from jaxrec import report
from jaxrec.run import Memory

SECONDS = {"seconds/compile": 1.0, "seconds/train": 2.0, "seconds/evaluate": 0.5}


def result(ndcg, error=0.01, **more):
    return {
        "test/NDCG@5": 0.0, "test/NDCG@10": ndcg, "test/NDCG@10/se": error, "test/MRR": 0.5,
        "test/NDCG@10/client_std": 0.3, "best_round": 4, "bytes/per_client": 2.5e6,
        **SECONDS, **more,
    }  # fmt: skip


def shown(table, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "x.json"
    report.write_json(path, {"a": 1})

    def fail(beside):
        beside.write_text("half")
        raise OSError

    with pytest.raises(OSError):
        report.write_atomic(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}


def test_json_is_strict_and_exact(tmp_path):
    value = {"pi": math.pi, "none": float("nan"), "list": (np.float64(0.1), np.int32(3), math.inf)}
    report.write_json(tmp_path / "x.json", value)
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert read == {"pi": math.pi, "none": None, "list": [0.1, 3, None]}


def test_rows_are_read_up_to_a_round_and_a_cut_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"round": n, "loss": n / 3} for n in (5, 10, 15)]
    for row in rows:
        report.append_row(path, row)
    with path.open("a") as file:
        file.write('{"round": 20, "lo')
    assert report.read_rows(path) == rows
    assert report.read_rows(path, until=10) == rows[:2]
    report.write_rows(path, rows[:2])
    assert report.read_rows(path) == rows[:2]
    assert report.read_rows(tmp_path / "absent.jsonl") == []


def test_the_table_sets_methods_side_by_side():
    text = shown(
        report.table({"a": result(0.25), "b": result(0.1, error=None)}, protocol="on some data")
    )
    line = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert line["test"][1:3] == ["NDCG@10", "MRR"]
    assert line["a"] == ["a", "0.2500", "±0.0100", "0.5000", "2.50", "3.5"]
    assert line["b"] == ["b", "0.1000", "0.5000", "2.50", "3.5"]
    assert "NDCG@5" not in text
    assert "on some data" in text


def test_the_table_falls_back_to_the_longest_list_and_knows_sampled_metrics():
    sampled = {"test/HR@5(9 negatives)": 0.5, "test/HR@20(9 negatives)": 0.75, "best_round": 1}
    text = shown(report.table({"a": sampled | SECONDS | {"bytes/per_client": 0.0}}))
    assert "HR@20(9 negatives)" in text
    assert "0.7500" in text
    assert "HR@5" not in text


def test_a_narrow_table_loses_no_number():
    text = shown(report.table({"local_only": result(0.25), "b": result(0.1)}), width=60)
    assert all(part in text for part in ("local_only", "0.2500", "±0.0100", "2.50", "3.5"))


def test_summary_is_mean_and_std_over_seeds(tmp_path):
    values = {"x": [0.1, 0.2, 0.4], "y": [0.3, 0.3, 0.3]}
    for seed in range(3):
        for method, folder in (("x", f"run{seed}"), ("y", f"run{seed}/baselines/y")):
            report.write_json(tmp_path / folder / "config.json", {"method": method})
            report.write_json(tmp_path / folder / "result.json", result(values[method][seed]))
    table = report.summary(tmp_path / f"run{seed}" for seed in range(3))
    assert list(table.index) == ["x", "y"]
    assert table.loc["x", "runs"] == 3
    for method, each in values.items():
        assert table.loc[method, "test/NDCG@10"] == pytest.approx(np.mean(each))
        assert table.loc[method, "test/NDCG@10/std"] == pytest.approx(np.std(each, ddof=1))
    assert not [name for name in table if "/se" in name or name.startswith("seconds")]


def test_the_curve_is_an_image(tmp_path):
    rows = [{"round": n, "valid/NDCG@10": n / 10} for n in (1, 2, 3)]
    report.write_curve(tmp_path / "curve.png", {"a": rows, "b": rows[:1], "c": []}, "NDCG@10")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_a_line_for_each_evaluation_where_there_is_no_terminal(capsys):
    with report.Line("toy", 20) as line:
        line.update(Memory(round=5, best=0.25, best_round=5, bytes=1e6), "NDCG@10", 0.25)
        line.update(Memory(round=10, best=0.25, best_round=5, bytes=2e6), "NDCG@10", 0.2)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "toy: round 5/20  NDCG@10 0.2500  best 0.2500 at 5  1.0 MB"
    assert second.startswith("toy: round 10/20  NDCG@10 0.2000  best 0.2500 at 5  2.0 MB")
    assert "rounds/s" in second
    assert "left" in second


def test_a_hidden_line_prints_nothing(capsys):
    with report.Line("toy", 20, shown=False) as line:
        line.update(Memory(round=5, best=0.25, best_round=5), "NDCG@10", 0.25)
    assert capsys.readouterr() == ("", "")
