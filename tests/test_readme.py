"""The README's Python blocks run, in order, as a reader would paste them."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["scores"].shape == (8, names["sizes"].users, names["sizes"].items)
    assert names["result"].values["test/NDCG@10"] > 0.2


def test_every_named_path_exists():
    for path in re.findall(r"\]\(([\w./-]+)\)", README.read_text()):
        assert (README.parent / path).exists(), path
