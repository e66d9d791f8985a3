"""CSV comes back as it was from any reader, and no terminal obeys what data hold."""

import csv
import io
import sys
import unicodedata

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.cli.command import console
from jaxrec.output import csv_text, harmless, to_stdout
from jaxrec.training.progress import say

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f"


def parsed(text):
    """The cells of a CSV, by the letter of RFC 4180: any end of line ends an unquoted record."""
    rows, row, cell, quoted, at = [], [], "", False, 0
    while at < len(text):
        letter = text[at]
        if quoted:
            if letter == '"' and text[at + 1 : at + 2] == '"':
                cell, at = cell + '"', at + 1
            elif letter == '"':
                quoted = False
            else:
                cell += letter
        elif letter == '"':
            assert cell == ""
            quoted = True
        elif letter == ",":
            row, cell = [*row, cell], ""
        elif letter in "\r\n":
            rows, row, cell = [*rows, [*row, cell]], [], ""
        else:
            cell += letter
        at += 1
    assert not quoted and row == [] and cell == ""
    return rows


LETTERS = st.characters(codec="utf-8") | st.sampled_from(',"\r\n\t\0=;')


@given(st.lists(st.text(LETTERS), min_size=1))
def test_any_title_comes_back_from_any_reader(titles):
    table = pd.DataFrame({"item": np.arange(len(titles)), "title": titles, "score": 0.5})
    text = csv_text(table)
    expected = [["item", "title", "score"]]
    expected += [[str(n), title, "0.5"] for n, title in enumerate(titles)]
    assert parsed(text) == expected
    assert list(csv.reader(io.StringIO(text, newline=""))) == expected
    assert csv_text(table, header=False) in text


def test_cells_that_a_spreadsheet_executes_are_disarmed_when_asked():
    texts = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "\r=x", "\n=x", "\uff1d1"]
    kept = ["a=b", "-3.5", "+1e-3", "-.5", " x", "", "'=1", "7 = 7"]
    table = pd.DataFrame({"title": [*texts, *kept], "score": -0.25})
    assert [row[0] for row in parsed(csv_text(table))[1:]] == [*texts, *kept]
    disarmed = parsed(csv_text(table, disarm=True))[1:]
    assert [row[0] for row in disarmed] == [*(f"'{text}" for text in texts), *kept]
    assert {row[1] for row in disarmed} == {"-0.25"}
    assert list(table["title"]) == [*texts, *kept]


def test_a_missing_title_is_an_empty_cell():
    table = pd.DataFrame({"title": ["a\rb", None]})
    assert parsed(csv_text(table, disarm=True)) == [["title"], ["a\rb"], [""]]


@given(st.text())
def test_what_is_harmless_holds_no_command(text):
    shown = harmless(text)
    assert len(shown) == len(text)
    assert {letter for letter in shown if unicodedata.category(letter) == "Cc"} <= {"\t", "\n"}
    assert harmless("a\tb\n\u00e9") == "a\tb\n\u00e9"


def test_lines_and_tables_obey_nothing(capsys):
    say(f"error: {EVIL}\nand more")
    shown = console(highlight=False, width=60)
    shown.print(f"wrong: {EVIL}", markup=False)
    out, err = capsys.readouterr()
    assert err == f"error: {harmless(EVIL)} and more\n"
    assert "\u241b]0;owned" in out and not {"\x1b", "\x9b"} & set(out)


@pytest.mark.parametrize("terminal", [True, False])
def test_standard_output_is_bare_unless_a_terminal_shows_it(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    to_stdout()(EVIL)
    assert capsys.readouterr().out == (harmless(EVIL) if terminal else EVIL)
