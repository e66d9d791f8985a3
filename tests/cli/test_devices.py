"""The commands of a federation refuse what cannot work, before they listen or connect."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from jaxrec.cli import coordinate, participate
from jaxrec.cli.coordinate import Run, Server
from jaxrec.settings.words import read_options, take_options
from jaxrec.training.settings import read_words

DOCS = Path(__file__).parents[2] / "docs"
SERVER = "--items items.csv --insecure"


@pytest.mark.parametrize(
    "words, told",
    [
        ("fedcia --items items.csv", "certificate: none is given"),
        ("fedcia --insecure", "items: give the federation's list"),
        (f"{SERVER}", "no method given: one of fedavg"),
        (f"itemknn {SERVER}", "must be one of fedavg, fedcia, popularity, rqfedrec"),
        (f"fedcia {SERVER} --split time", "split: each client has its own; give it to"),
        (f"fedcia {SERVER} --ranking rows", "ranking: is no setting of a federation"),
        (f"fedcia {SERVER} --privacy central_dp --epsilon 1", "add no noise yet"),
        (f"fedavg {SERVER} --dropped 0.5", "simulates what clients do"),
        (f"fedcia {SERVER} --participation 0.5", "every client is in each sum of fedcia"),
        (f"fedcia {SERVER} --start-with 2", "say with --users how many"),
        (f"fedcia {SERVER} --start-with 9", "start_with = 9: there are 3 places"),
        (f"fedcia {SERVER} --keys admitted", "goes with neither certificate nor keys"),
        (f"fedcia {SERVER} --certificate a.pem", "give both"),
        (f"fedcia {SERVER} --widht 8", "no such setting of fedcia"),
        ("fedcia --items i.csv --certificate a.pem --certificate-key a.key", "certificate: cannot"),
        ("--resume nowhere", "nowhere/federation.json"),
    ],
)
def test_a_server_refuses_in_one_line(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert coordinate.main(words.split()) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("error: ") == 1
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "runs"])


def test_a_run_is_neither_overwritten_nor_resumed_too_early(capsys, tmp_path):
    record = {"method": "fedcia", "settings": {}, "terms": {}, "server": {}, "participation": 1}
    (tmp_path / "federation.json").write_text(json.dumps(record))
    told = lambda *words: (coordinate.main(words), capsys.readouterr().err)
    status, said = told("fedcia", *SERVER.split(), "--out", str(tmp_path))
    assert (status, "holds a run; resume it" in said) == (2, True)
    status, said = told("--resume", str(tmp_path))
    assert (status, "ended before anything was saved" in said) == (2, True)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "index.json").write_text("{}")
    (tmp_path / "members.json").write_text('{"members": {}}')
    for words in (["--clients", "4"], ["--out", "elsewhere"], ["--config", "a.toml"]):
        status, said = told("--resume", str(tmp_path), *words)
        assert (status, "goes on as it was begun" in said) == (2, True), words
    status, said = told("fedavg", "--resume", str(tmp_path))
    assert (status, "fedavg: " in said) == (2, True)
    (tmp_path / "result.json").write_text("{}")
    status, said = told("--resume", str(tmp_path))
    assert (status, "has ended, with result.json" in said) == (2, True)


def test_stored_options_are_read_again():
    server = Server(items="i.csv", insecure=True, wait=0.0, start_with=2, users=9)
    words = coordinate._words_of(coordinate._stored(server), [])
    assert take_options(Server, words) == (server, [])


@pytest.mark.parametrize(
    "words, told",
    [
        ("--items items.csv", "no data given: python -m jaxrec.participate DATA"),
        ("rows.csv", "items: give the federation's list of items"),
        ("rows.csv --items items.csv", "items.csv: is no table of items"),
        ("rows.csv --items https://a.b/items.csv", "needs its file's --items-sha256"),
        ("rows.csv --items i.csv --insecure --root-certificate ca.pem", "leave one out"),
        ("rows.csv --items i.csv --min-cohort 0", "min_cohort = 0: must be at least 1"),
        ("rows.csv --items i.csv --rounds 3", "no such setting of this command"),
    ],
)
def test_a_client_refuses_in_one_line(words, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert participate.main(words.split()) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("error: ") == 1


@pytest.mark.parametrize("command", [coordinate, participate])
def test_without_flower_the_remedy_is_told(command, capsys, monkeypatch):
    for name in ("superlink", "supernode"):
        monkeypatch.setitem(sys.modules, f"jaxrec.deployment.flower.{name}", None)
    words = ["fedcia" if command is coordinate else "rows.csv", "--items", "i.csv", "--insecure"]
    assert command.main(words) == 2
    assert "pip install 'jaxrec[flower]'" in capsys.readouterr().err


def test_the_containers_are_started_with_words_that_exist():
    services = yaml.safe_load((DOCS / "federation.yaml").read_text())["services"]
    for name, service in services.items():
        if name == "rows":
            continue
        _, _, module, given, *words = shlex.split(service["command"])
        if module == "jaxrec.coordinate":
            server, words = take_options(Server, words)
            shown, words = take_options(Run, words)
            assert (server.clients, str(shown.out)) == (3, "/runs/server")
            assert read_words(given, words) == {}
        else:
            options = read_options(participate.Options, words)
            assert (options.server, options.insecure) == ("server:9092", True)
