"""docs/data.md: its commands run, its tables say what the code says."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from jaxrec.data import synthetic
from jaxrec.data.check import knows
from jaxrec.data.tables import INTERACTIONS, ITEMS, LISTS, USERS
from jaxrec.methods import METHODS

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "data.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines()
]
QUICK = ["--rounds", "1", "--evaluate-every", "1", "--baselines"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the guide's commands name: ratings.csv, shop.csv and my-shop."""
    folder = tmp_path_factory.mktemp("guide")
    data = synthetic(users=60, items=60, clients=6, length=16)
    rows = data.interactions.drop(columns=["client", "domain"]).assign(rating=5)
    rows["timestamp"] -= rows.groupby("user")["timestamp"].transform("min") - 1_700_000_000
    header = re.search(r"```csv\n(.*?)\n", GUIDE)[1].split(",")
    named = rows[["user", "item", "rating", "timestamp"]].set_axis(header, axis=1)
    named.to_csv(folder / "ratings.csv", index=False)
    shop = named.set_axis(["Customer ID", "SKU", "Stars", "timestamp"], axis=1)
    shop.to_csv(folder / "shop.csv", index=False)
    (folder / "my-shop").mkdir()
    rows.to_csv(folder / "my-shop" / "interactions.csv", index=False)
    data.items.to_csv(folder / "my-shop" / "items.csv", index=False)
    return folder


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_run(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("JAXREC_DATA", raising=False)
    monkeypatch.setattr("jaxrec.training.curve.write_curve", lambda *args: None)
    python, flag, module, *words = shlex.split(line)
    assert (python, flag) == ("python", "-m")
    checks = module == "jaxrec.data"
    main = importlib.import_module(module.replace("jaxrec.", "jaxrec.cli.")).main
    assert main(words if checks else [*words, *QUICK]) == 0
    shown = capsys.readouterr().out
    assert ("Nothing is wrong." if checks else "run folder: runs") in shown


def test_the_table_of_needs_is_that_of_the_check():
    lines = re.findall(r"^\| `(\w+)` \|(.*)\|(.*)\|(.*)\|$", GUIDE, re.MULTILINE)
    columns = list(knows(synthetic(users=20, items=20, clients=2, length=5)))
    told = {
        name: {c: cell.strip() for c, cell in zip(columns, cells, strict=True) if cell.strip()}
        for name, *cells in lines
        if name in METHODS
    }
    assert told == {
        name: dict.fromkeys(module.TRAITS.needs, "needs")
        | dict.fromkeys(module.TRAITS.uses, "uses")
        for name, module in METHODS.items()
    }


def test_every_name_of_a_column_is_told():
    start, end = GUIDE.index("## Columns"), GUIDE.index("## Splits")
    told = set(re.findall(r"`([a-z]+)`", GUIDE[start:end]))
    hidden = {"rawid", "originid", "asin", "movietitle", "categories", "genre", "raw_id"}
    tables = (INTERACTIONS, ITEMS, USERS, LISTS)
    known = {name for table in tables for names in table.items() for name in (names[0], *names[1])}
    assert known - told == hidden
    assert told - known == {"train", "valid", "test"}


def test_the_errors_it_quotes_are_in_the_code():
    table = GUIDE[GUIDE.index("## Common errors") :]
    quoted = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)
    assert len(quoted) >= 6
    code = "".join(path.read_text() for path in (ROOT / "jaxrec" / "data").glob("*.py"))
    for words in quoted:
        assert words.replace("'user'", "'{name}'") in code
