"""Files are whole or absent; tables and summaries say what the results say."""

import io
import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from jaxrec import report
from jaxrec.federated import communication
from jaxrec.federated.communication import Ledger
from jaxrec.job import Memory
from jaxrec.types import CheckpointError, Traffic

SECONDS = {"seconds/compile": 1.0, "seconds/train": 2.0, "seconds/evaluate": 0.5}


def result(ndcg, error=0.01, **more):
    return {
        "test/NDCG@5": 0.0, "test/NDCG@10": ndcg, "test/NDCG@10/se": error, "test/MRR": 0.5,
        "test/NDCG@10/client_std": 0.3, "best_round": 4, "bytes/per_client": 2.5e6,
        **SECONDS, **more,
    }  # fmt: skip


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """Draws curves of a federation of 10 and returns the two panels."""
    figures, savefig = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(curves):
        report.write_curve(tmp_path / "curve.png", curves, "NDCG@10", 10)
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
        assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
        return figures[-1].axes

    return draw


def lines(axes):
    """The points of each line by label and style; a level spans the axes from 0 to 1."""
    return {
        (line.get_label(), line.get_linestyle()): list(zip(*line.get_data(), strict=True))
        for line in axes.get_lines()
        if line.get_marker() != "o"
    }


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


def test_rows_are_read_and_a_cut_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"round": n, "loss": n / 3, "seconds": 0.1} for n in (5, 10, 15)]
    for row in rows:
        report.append_row(path, row)
    with path.open("a") as file:
        file.write('{"round": 20, "lo')
    assert report.read_rows(path) == rows
    report.write_rows(path, rows[:2])
    assert report.read_rows(path) == rows[:2]
    assert report.read_rows(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("bad", ['{"round": 2, "sec', '{"round": 2}', "[2, 0.1]", "2", '""'])
def test_a_damaged_line_is_refused_by_number(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"round": 1, "seconds": 0.1}}\n{bad}\n{{"round": 3, "seconds": 0.1}}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl, line 2: damaged, lacks "):
        report.read_rows(path)


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


@pytest.mark.parametrize("key", ["valid/NDCG@10", "valid/NDCG@10(99 negatives)"])
def test_curves_run_over_rounds_and_over_bytes(panels, key):
    rows = [{"round": n, "bytes": n * 5e6, key: n / 10, f"{key}/se": 0.0} for n in (1, 2, 3)]
    silent = [row | {"bytes": 0.0} for row in rows]
    over_rounds, over_bytes = panels({"a": rows, "b": rows[:1], "c": silent, "d": []})
    assert lines(over_rounds) == {
        ("a", "-"): [(1, 0.1), (2, 0.2), (3, 0.3)],
        ("b", "--"): [(0, 0.1), (1, 0.1)],
        ("c", "-"): [(1, 0.1), (2, 0.2), (3, 0.3)],
    }
    assert lines(over_bytes) == {
        ("a", "-"): [(0.5, 0.1), (1.0, 0.2), (1.5, 0.3)],
        ("b", "--"): [(0, 0.1), (1, 0.1)],
        ("c", "--"): [(0, 0.3), (1, 0.3)],
    }
    (dot,) = (line for line in over_bytes.get_lines() if line.get_marker() == "o")
    assert (dot.get_xdata(), dot.get_ydata()) == ([0.5], [0.1])
    assert over_rounds.get_ylabel() == key.replace("/", " ")


def test_curves_without_a_byte_or_a_row_are_drawn_too(panels):
    panels({"a": [{"round": 1, "bytes": 0.0, "valid/NDCG@10": 0.1}]})
    panels({"a": []})


def test_the_traffic_table_sets_bytes_side_by_side():
    sent = Traffic(up=1000.0, down=500.0, setup_up=64.0)
    results = {
        "a": communication.values(Ledger(rounds_up=9e6, rounds_down=1e6, setup_up=640), sent, 10),
        "b": communication.values(Ledger(rounds_down=5e4), Traffic(down=5000.0), 10),
        "c": communication.values(Ledger(), Traffic(), 10),
    }
    text = shown(report.traffic_table(results))
    line = {line.split()[0]: line.split("  ") for line in text.splitlines() if line.strip()}
    cells = {name: [cell.strip() for cell in cells if cell.strip()] for name, cells in line.items()}
    assert cells["a"] == ["a", "1 KB", "500 B", "64 B", "1 MB", "10 MB"]
    assert cells["b"] == ["b", "0", "5 KB", "0", "5 KB", "50 KB", "200x"]
    assert cells["c"] == ["c", "0", "0", "0", "0", "0"]
    assert "fewer than a" in " ".join(text.split())
    assert not any(word in text for word in ("code", "refresh"))
    coded = communication.values(Ledger(codes_down=2e4, refresh_up=1e4), Traffic(), 10)
    alone = shown(report.traffic_table({"d": coded}))
    assert " ".join(alone.splitlines()[-2].split()) == "d 0 0 2 KB 1 KB 3 KB 30 KB"
    assert "fewer" not in alone


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1, "1 B"), (999, "999 B"), (999.9, "1 KB"), (76_800, "76.8 KB"), (2e9, "2 GB"),
     (5_657_928, "5.66 MB"), (1.5e15, "1,500 TB")],
)  # fmt: skip
def test_sizes_have_three_digits(number, text):
    assert report._size(number) == text


def test_a_line_for_each_evaluation_where_there_is_no_terminal(capsys):
    with report.Line("toy", 20) as line:
        memory = Memory(round=5, best=0.25, best_round=5, ledger=Ledger(rounds_up=1e6))
        line.update(memory, "NDCG@10", 0.25)
        memory = memory._replace(round=10, ledger=Ledger(rounds_up=1e6, setup_down=1e6))
        line.update(memory, "NDCG@10", 0.2)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "toy: round 5/20  NDCG@10 0.2500  best 0.2500 at 5  1.0 MB"
    assert second.startswith("toy: round 10/20  NDCG@10 0.2000  best 0.2500 at 5  2.0 MB")
    assert "rounds/s" in second
    assert "left" in second


def test_a_hidden_line_prints_nothing(capsys):
    with report.Line("toy", 20, shown=False) as line:
        line.update(Memory(round=5, best=0.25, best_round=5), "NDCG@10", 0.25)
    assert capsys.readouterr() == ("", "")
