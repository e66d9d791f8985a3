"""The pages run: every fenced Python block is executed, and every link leads somewhere.

The blocks of a page share their names and run in order. A block whose first line is a comment that
names a .py file is that file: it is written, then whoever imports it finds it. A page that takes
names for granted, or is run by another test, stands below.
"""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import yaml

import jaxrec
from jaxrec.methods import METHODS
from jaxrec.types import Method, Release, Traffic, Unavailable

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
GIVEN = {
    "design.md": {
        "Callable": Callable,
        "NamedTuple": NamedTuple,
        "Release": Release,
        "Traffic": Traffic,
        "Unavailable": Unavailable,
    }
}
ELSEWHERE = {
    "README.md": "test_readme.py",
    "search.md": "search/test_sweep.py",
    "serving.md": "service/test_service.py",
}


def blocks(page):
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def links(page):
    """What a page's links and images point to, without what lies on other hosts."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"https?://|mailto:", target)]


def anchors(page):
    """The names of a page's headings in its address."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def run(name, folder, monkeypatch):
    """Execute a page's blocks in `folder`; returns the names they leave."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    names = {"__name__": "page"} | GIVEN.get(name, {})
    for number, block in enumerate(blocks(ROOT / "docs" / name)):
        if file := re.match(r"# (\w+\.py)\n", block):
            (folder / file[1]).write_text(block)
        else:
            exec(compile(block, f"{name}, block {number}", "exec", dont_inherit=True), names)
    return names


def test_every_block_is_run():
    written = {page.name for page in [ROOT / "README.md", *PAGES] if blocks(page)}
    here = set(re.findall(r"run\(\"(\S+\.md)\"", Path(__file__).read_text()))
    assert written == here | set(ELSEWHERE)
    for page, test in ELSEWHERE.items():
        assert page in (Path(__file__).parent / test).read_text()


def test_no_block_hides_behind_another_mark():
    marks = {"bash", "sh", "csv", "toml", "yaml", "python", ""}
    for page in [ROOT / "README.md", *PAGES]:
        assert set(re.findall(r"^ *```(\S*)", page.read_text(), re.MULTILINE)) <= marks, page.name


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES, *NOTEBOOKS], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_a_broken_link_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One `thing`, two\n[a](none.md) ![b](#one-thing-two) [c](https://d.e)\n")
    assert links(page) == ["none.md", "#one-thing-two"]
    assert anchors(page) == {"one-thing-two"}


def test_design(tmp_path, monkeypatch):
    told = run("design.md", tmp_path, monkeypatch)["Method"]
    assert told._fields == Method._fields
    assert set(told._field_defaults) == set(Method._field_defaults)


def test_data(tmp_path, monkeypatch):
    data = run("data.md", tmp_path, monkeypatch)["data"]
    assert data.users["raw_id"].tolist() == [1, 2]
    assert data.items["title"].tolist() == ["Tea", "Cup", "Pot"]
    assert data.interactions["item"].tolist() == [0, 0, 2]


def test_extending(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "fedprox", None)  # so that they are gone after the test
    monkeypatch.setitem(jaxrec.CLIENT_MODELS, "bilinear", None)
    names = run("extending.md", tmp_path, monkeypatch)
    result = names["result"]
    popularity = result.baselines["popularity"].values["test/NDCG@10"]
    assert result.values["test/NDCG@10"] == pytest.approx(0.31, abs=0.005)
    assert popularity == pytest.approx(0.13, abs=0.005)
    assert result.values["bytes/per_client"] == 60 * 2 * 4 * 16 * names["sizes"].items
    assert names["scores"].shape == (8, names["sizes"].users, names["sizes"].items)
    assert names["losses"].shape == (3,)
    assert len(set(names["losses"].tolist())) == 3


def test_sequential(tmp_path, monkeypatch):
    names = run("sequential.md", tmp_path, monkeypatch)
    states, table, where = names["states"], names["table"], names["where"].reshape(-1)
    every = -jax.nn.log_softmax(states @ table.T)[np.arange(len(states)), names["target"]]
    assert names["loss"] == pytest.approx(float(every[where].mean()), rel=1e-4)
    assert names["logits"].shape == (8, names["I"])


def test_every_guarantee_names_a_test():
    text = (ROOT / "docs" / "reliability.md").read_text()
    named = re.findall(r"`([\w/]+\.py)`: ((?:`test_\w+`(?:, )?)+)", text)
    found = [(file, name) for file, names in named for name in re.findall(r"`(\w+)`", names)]
    assert len(found) == len(re.findall(r"`test_\w+`", text)) > 30
    for file, name in found:
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), (file, name)


def test_results_are_those_of_the_configurations():
    """A row that ends with a file of configs/ begins with a mean that the file's head claims."""
    rows = {
        (page.name, name): row
        for page in [ROOT / "README.md", *PAGES]
        for row, name in re.findall(r"^(\|.*)\| `([\w-]+)` \|$", page.read_text(), re.MULTILINE)
        if (ROOT / "configs" / f"{name}.toml").exists()
    }
    assert len(rows) > 30
    for (page, name), row in rows.items():
        head = "".join((ROOT / "configs" / f"{name}.toml").read_text().splitlines()[:3])
        assert re.search(r"\.\d{4}", row)[0] in head, (page, name)


def test_the_citation_names_this_version_and_the_four_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= set(cited)
    assert cited["version"] == jaxrec.__version__
    assert cited["version"] in (ROOT / "docs" / "CHANGELOG.md").read_text()
    papers = {paper["url"]: paper for paper in cited["references"]}
    readme = (ROOT / "README.md").read_text()
    methods = readme[readme.index("## Methods") : readme.index("## Results")]
    assert set(papers) == set(re.findall(r"https://arxiv.org/abs/[\d.]+", methods))
    for url, paper in papers.items():
        assert paper["title"] and paper["authors"] and paper["type"] == "article"
        assert paper["identifiers"][0]["value"] == "arXiv:" + url.rsplit("/", 1)[1]


def test_the_site_builds(tmp_path):
    if not importlib.util.find_spec("mkdocs") or not importlib.util.find_spec("mkdocstrings"):
        pytest.skip("mkdocs and mkdocstrings are not installed: jaxrec[docs]")
    words = ["build", "--strict", "-q", "-f", "docs/site/mkdocs.yml", "-d", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference" / "jaxrec.federated.engine.html").read_text()
    assert "Run one round over all buckets." in reference


def cells(book):
    found = json.loads(book.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_notebooks_are_stored_without_outputs():
    assert len(NOTEBOOKS) == 2
    for book in NOTEBOOKS:
        for cell in json.loads(book.read_text())["cells"]:
            if cell["cell_type"] == "code":
                assert (cell["outputs"], cell["execution_count"]) == ([], None), book.name


def test_the_cells_on_recommending(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict = {}
    exec("\n".join(cells(ROOT / "docs" / "notebooks" / "recommend.ipynb")), names)
    ndcg = {name: found["test/NDCG@10"] for name, found in names["values"].items()}
    assert ndcg["fedavg"] > ndcg["popularity"] + 0.05
    assert names["lists"].groupby("user").size().tolist() == [5, 5]
    assert not set(names["newcomer"]["item"]) & set(names["basket"])


def test_the_cells_on_comparing(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict = {}
    exec("\n".join(cells(ROOT / "docs" / "notebooks" / "compare.ipynb")), names)
    table = names["found"].table
    assert table["runs"].tolist() == [2, 2, 2]
    assert table["mean"].filter(like="popularity").item() == table["mean"].min()
    assert "mask_history = True and False" in names["refusal"]


@pytest.mark.parametrize("book", NOTEBOOKS, ids=lambda book: book.name)
def test_notebooks_run_in_a_kernel(book, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: jaxrec[docs]")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: jaxrec[docs]")
    done = nbclient.NotebookClient(
        nbformat.read(book, 4), resources={"metadata": {"path": tmp_path}}
    )
    done.execute()
    assert any(cell.get("outputs") for cell in done.nb.cells)
