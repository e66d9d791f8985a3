"""Tables of results show the numbers of the results."""

import io

import numpy as np
import pytest
from rich.console import Console

from jaxrec.evaluation.significance import deviation
from jaxrec.federated import byte_ledger
from jaxrec.federated.byte_ledger import Ledger
from jaxrec.report import bytes_to_quality, result_tables
from jaxrec.types import Traffic

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


def test_the_table_sets_methods_side_by_side():
    text = shown(
        result_tables.metrics_table(
            {"a": result(0.25), "b": result(0.1, error=None)}, protocol="on some data"
        )
    )
    line = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert line["test"][1:3] == ["NDCG@10", "MRR"]
    assert line["a"] == ["a", "0.2500", "±0.0100", "0.5000", "2.50", "3.5"]
    assert line["b"] == ["b", "0.1000", "0.5000", "2.50", "3.5"]
    assert "NDCG@5" not in text
    assert "on some data" in text


def test_the_table_falls_back_to_the_longest_list_and_knows_sampled_metrics():
    sampled = {"test/HR@5(9 negatives)": 0.5, "test/HR@20(9 negatives)": 0.75, "best_round": 1}
    text = shown(result_tables.metrics_table({"a": sampled | SECONDS | {"bytes/per_client": 0.0}}))
    assert "HR@20(9 negatives)" in text
    assert "0.7500" in text
    assert "HR@5" not in text


def test_a_narrow_table_loses_no_number():
    text = shown(
        result_tables.metrics_table({"local_only": result(0.25), "b": result(0.1)}), width=60
    )
    assert all(part in text for part in ("local_only", "0.2500", "±0.0100", "2.50", "3.5"))


def test_the_traffic_table_sets_bytes_side_by_side():
    sent = Traffic(up=1000.0, down=500.0, setup_up=64.0)
    results = {
        "a": byte_ledger.values(Ledger(rounds_up=9e6, rounds_down=1e6, setup_up=640), sent, 10),
        "b": byte_ledger.values(Ledger(rounds_down=5e4), Traffic(down=5000.0), 10),
        "c": byte_ledger.values(Ledger(), Traffic(), 10),
    }
    text = shown(result_tables.traffic_table(results))
    line = {line.split()[0]: line.split("  ") for line in text.splitlines() if line.strip()}
    cells = {name: [cell.strip() for cell in cells if cell.strip()] for name, cells in line.items()}
    assert cells["a"] == ["a", "1 KB", "500 B", "64 B", "1 MB", "10 MB"]
    assert cells["b"] == ["b", "0", "5 KB", "0", "5 KB", "50 KB", "200x"]
    assert "c" not in cells  # it sends nothing
    assert "fewer than a" in " ".join(text.split())
    assert not any(word in text for word in ("code", "refresh"))
    quality = {"a": bytes_to_quality.Sent(4e5, 2e5), "b": bytes_to_quality.Sent(5e3, float("nan"))}
    told = shown(result_tables.traffic_table(results, quality), 160)
    line = {line.split()[0]: " ".join(line.split()) for line in told.splitlines() if line.strip()}
    assert line["a"].startswith("a 1 KB 500 B 64 B 1 MB 400 KB 200 KB 10 MB")
    assert line["b"].startswith("b 0 5 KB 0 5 KB 5 KB never 50 KB")
    coded = byte_ledger.values(Ledger(codes_down=2e4, refresh_up=1e4), Traffic(), 10)
    alone = shown(result_tables.traffic_table({"d": coded}))
    assert " ".join(alone.splitlines()[-2].split()) == "d 0 0 2 KB 1 KB 3 KB 30 KB"
    assert "fewer" not in alone


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1, "1 B"), (999, "999 B"), (999.9, "1 KB"), (76_800, "76.8 KB"), (2e9, "2 GB"),
     (5_657_928, "5.66 MB"), (1.5e15, "1,500 TB")],
)  # fmt: skip
def test_sizes_have_three_digits(number, text):
    assert result_tables._size(number) == text


def test_bytes_to_quality_are_those_of_the_first_evaluation_that_is_good_enough():
    rows = lambda *values: [
        {"round": n, "bytes": 100.0 * n, "valid/NDCG@10": value}
        for n, value in enumerate(values, 1)
    ]
    runs = {
        "a": ({"bytes/total": 400.0, "bytes/per_client": 40.0, "best_round": 3},
              rows(0.1, 0.19, 0.2, 0.18)),
        "b": ({"bytes/total": 200.0, "bytes/per_client": 20.0, "best_round": 1}, rows(0.18, 0.1)),
        "alone": ({"bytes/total": 0.0, "bytes/per_client": 0.0, "best_round": 1},
                  [{"round": 1, "bytes": 0.0, "valid/NDCG@10": 0.9}]),
    }  # fmt: skip
    found = bytes_to_quality.sent(runs, "NDCG@10")
    assert found["a"] == (30.0, 20.0)  # .95 of .2: what is alone sends nothing and sets no mark
    assert found["b"][0] == 10.0 and np.isnan(found["b"][1])
    assert found["alone"] == (0.0, 0.0)


def test_a_deterministic_method_has_no_spread():
    assert np.isnan(deviation([0.25]))
    assert np.isnan(deviation([0.1 + 0.2] * 3))
    assert deviation([1.0, 2.0, 4.0]) == pytest.approx(np.std([1, 2, 4], ddof=1))
