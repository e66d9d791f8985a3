"""The README is short, its Python blocks run as a reader would paste them, and its paths exist."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 1
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["result"].values["test/NDCG@10"] > 0.2
    assert names["lists"].groupby("user").size().tolist() == [5, 5]
    assert len(names["new"]) == 5
    assert len(names["reasons"]) > 0


def test_every_named_path_exists():
    text = README.read_text()
    for path in re.findall(r"\]\(([\w./-]+)\)|--config (configs/[\w./-]+)", text):
        assert (README.parent / (path[0] or path[1])).exists(), path


def test_a_reader_sees_all_of_it():
    assert len(README.read_text().splitlines()) <= 130
