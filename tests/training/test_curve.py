"""Curves show the rows of the evaluations."""

import pytest
from matplotlib.figure import Figure

from jaxrec.training import curve


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """Draws curves of a federation of 10 and returns the two panels."""
    figures, savefig = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(curves):
        curve.write_curve(tmp_path / "curve.png", curves, "NDCG@10", 10)
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
