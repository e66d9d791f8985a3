"""A page says what its runs say, escapes whatever they hold, and needs nothing but itself."""

import functools
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html import escape, unescape
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import jaxrec
from jaxrec import files
from jaxrec.cli import report as module
from jaxrec.cli.command import command
from jaxrec.data.synthetic import synthetic
from jaxrec.methods import METHODS as EVERY
from jaxrec.methods import method_module
from jaxrec.report import charts, sections
from jaxrec.report.charts import Chart, Line
from jaxrec.report.markup import element
from jaxrec.report.page import page
from jaxrec.types import CheckpointError, SettingError

EVIL = "<script>alert(1)</script> & \"Sons'"
TINY = {"text": "tfidf", "baselines": (), "progress": False}
METHODS = {
    "fedcia": {"rounds": 4, "width": 4, "rank": 4, "baselines": ("popularity",)},
    "ease": {"model": "ease"},
    "rqfedrec": {"rounds": 1, "codes": 6, "levels": 2, "width": 4, "start": "cold"},
    "agentcf": {"groups": 3, "rank": 4, "recent": 6, "ks": (1, 5), "candidates": 4},
    "itemknn": {"ks": (1, 5), "candidates": 4, "monitor": "MRR"},
}  # fmt: skip
needs_chromium = pytest.mark.skipif(
    not shutil.which("chromium"), reason="no browser: the program chromium is not installed"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset folder whose most taken item has a title, and a user an id, of markup."""
    folder = tmp_path_factory.mktemp("data") / "small"
    folder.mkdir()
    made = synthetic(users=40, items=30, clients=4, length=10)
    titles = made.items["title"].where(made.items["item"] != most_taken(made.interactions), EVIL)
    users = "<i>" + made.interactions["user"].astype(str)
    made.interactions.assign(user=users).to_parquet(folder / "interactions.parquet")
    made.items.assign(title=titles).to_parquet(folder / "items.parquet")
    return folder


def most_taken(rows):
    return rows["item"].value_counts().index[0]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The result of each method, trained when it is first asked for."""
    found = {}

    def get(name, seed=0):
        if (name, seed) not in found:
            settings = TINY | METHODS[name] | {"seed": seed, "data": str(data)}
            method = "fedcia" if name == "ease" else name
            out = tmp_path_factory.mktemp("runs") / f"{name}-{seed}"
            found[name, seed] = jaxrec.train(method, out=out, **settings)
        return found[name, seed]

    return get


@pytest.fixture(scope="module")
def page_of(trained):
    """The page of one run, made when it is first asked for."""
    return functools.cache(lambda name: page([trained(name).out]))


@pytest.fixture
def copied(trained, tmp_path):
    """A FedCIA run to be spoilt."""
    return shutil.copytree(trained("fedcia").out, tmp_path / "run")


def main_of(made):
    return ElementTree.fromstring(re.search("<main>.*</main>", made.html, re.DOTALL)[0])


def section(made, title):
    return next(each for each in main_of(made).iter("section") if each[0].text == title)


def text_of(node):
    return "".join(node.itertext())


def cards_of(node):
    """Cards of a section: title -> the lines of all their lists, as texts."""
    each = (one for one in node.iter("section") if one.get("class") == "card")
    return {one[0].text: [[*map(text_of, line)] for line in one.iter("li")] for one in each}


def table_of(node, number=0):
    tables = [*node.iter("table")]
    return [[text_of(cell) for cell in row] for row in tables[number].iter("tr")]


def items_of(result):
    rows = result.dataset.interactions
    train = rows[rows["split"] == 0]
    return result.dataset.items["title"].to_list(), Counter(train["item"].tolist()), train


def first(pairs, number):
    """The first of equals first, by a loop."""
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:number]


@pytest.mark.parametrize("name", ["fedcia", "ease"])
def test_neighbours_are_those_of_the_dense_similarity(trained, page_of, name):
    result = trained(name)
    titles, popular, _ = items_of(result)
    if name == "ease":
        dense = np.asarray(result.state.left)
    else:
        vectors, values = map(np.asarray, result.state.shared.similarity)
        dense = vectors @ np.diag(values) @ vectors.T
        dense = dense / np.sqrt(np.outer(np.diag(dense), np.diag(dense)))
    shown = cards_of(section(page_of(name), "Similar items"))
    expected = [item for item, _ in first(popular.items(), 6)]
    assert list(shown) == [titles[item] for item in expected]
    assert EVIL in shown
    for item in expected:
        near = first([(i, v) for i, v in enumerate(dense[item]) if i != item], 5)
        assert [line[0] for line in shown[titles[item]]] == [titles[i] for i, _ in near]
        values = [float(line[1]) for line in shown[titles[item]]]
        np.testing.assert_allclose(values, [v for _, v in near], atol=6e-4)


def test_sections_are_of_methods_and_the_phases_those_of_the_language_method():
    assert set(sections.SECTIONS) <= set(EVERY)
    llmd4rec = importlib.import_module("jaxrec.methods.llmd4rec.method")
    phases = sections.LANGUAGE_LEARNS, sections.SEQUENTIAL_LEARNS
    assert phases == (llmd4rec.DOWN, llmd4rec.UP)


def test_weights_of_a_low_rank_model_are_rows_of_the_product():
    rng = np.random.default_rng(0)
    left, right = rng.random((5, 2)), rng.random((2, 5))
    found = sections.weight_rows(left, right, np.array([3, 1]))
    np.testing.assert_allclose(found, (left @ right)[[3, 1]])


def test_code_usage_is_counted_and_titles_stand_behind_their_code(trained):
    result = trained("rqfedrec")
    titles, popular, _ = items_of(result)
    coded = np.asarray(result.state.shared.codes.table)
    made = page([result.out])
    shown = section(made, "Codes")
    _, *rows = table_of(shown)
    levels = ["semantic 1", "semantic 2", "collaborative 1", "collaborative 2"]
    assert [row[0] for row in rows] == levels
    chart = made.charts["rqfedrec-items-behind-each-code"]
    behind = cards_of(shown)
    assert len(behind) == 6
    for place, (level, used, bits, largest) in enumerate(row for row in rows):
        counts = Counter(coded[:, place].tolist())
        assert used == f"{len(counts)} of 6" and largest == str(max(counts.values()))
        entropy = -sum(n / 30 * np.log2(n / 30) for n in counts.values())
        assert bits == f"{entropy:.2f} of {np.log2(6):.2f}"
        ordered = sorted(counts.values(), reverse=True)
        assert chart.lines[place].y.tolist() == ordered + [0] * (6 - len(ordered))
        for code, number in first(counts.items(), 3) if level.endswith("1") else ():
            items = [(i, popular[i]) for i in range(30) if coded[i, place] == code]
            found = [line[0] for line in behind[f"{level}, code {code}: {number} items"]]
            assert found == [titles[i] for i, _ in first(items, 6)]


@pytest.mark.slow
def test_groups_show_what_their_members_took(trained):
    result = trained("agentcf")
    titles, popular, train = items_of(result)
    domain = result.dataset.items["domain"]
    slot = np.asarray(result.state.groups.slot)
    shown = cards_of(section(page([result.out]), "Interest groups"))
    assert len(shown) == 3
    for group in range(3):
        members = [user for user in range(40) if group in slot[user]]
        own = train[train["user"].isin(members)].sort_values("timestamp", kind="stable")
        count = Counter(own["item"].tolist())
        newest = own["item"].tolist()[::-1]
        excess = {i: count[i] * len(train) - len(own) * popular[i] for i in range(30)}
        expected = [i for i, _ in first(count.items(), 5)]
        expected += [i for i, _ in first(excess.items(), 5)]
        for place in (0, 1):
            there = [item for item in newest if domain[item] == place][:6]
            expected += [*dict.fromkeys(there)][:5]
        found = [line[0] for line in shown[f"Group {group}: {len(members)} members"]]
        assert found == [titles[i] for i in expected]


def test_groups_of_a_state_show_what_it_remembers_of_them(trained):
    """A state of AgentCF++ made by hand: 40 users with 2 memories each, 3 groups, 30 items."""
    rng, result = np.random.default_rng(0), trained("fedcia")
    slot, recent = rng.integers(4, size=(40, 2)), rng.integers(31, size=(3, 2, 6))
    count, popularity = rng.integers(9, size=(3, 30)), rng.integers(1, 40, size=30)
    state = SimpleNamespace(groups=(slot, count, recent), popularity=popularity)
    run = SimpleNamespace(settings={"groups": 3})
    parts = sections.trends(run, lambda: result._replace(state=state))
    shown = cards_of(ElementTree.fromstring(f"<div>{''.join(parts)}</div>"))
    titles, members = items_of(result)[0], [(slot == group).any(1).sum() for group in range(3)]
    order = [group for group, _ in first(enumerate(members), 3)]
    assert list(shown) == [f"Group {group}: {members[group]} members" for group in order]
    for group, lines in zip(order, shown.values(), strict=True):
        excess = count[group] * popularity.sum() - count[group].sum() * popularity
        expected = [i for i, _ in first(enumerate(count[group]), 5)]
        expected += [i for i, _ in first(enumerate(excess), 5)]
        for newest in recent[group].tolist():
            expected += [i for i in dict.fromkeys(newest) if i < 30][:5]
        assert [line[0] for line in lines] == [titles[i] for i in expected]


def taught(folder):
    """A run turned into one of LLMD4Rec as far as its rows go: one epoch each of three phases."""
    record = json.loads((folder / "config.json").read_text())
    settings = {
        name: value for name, value in record["settings"].items() if name not in ("loss", "model")
    }
    record |= {"method": "llmd4rec", "settings": settings}
    files.write_json(folder / "config.json", record)
    (folder / "result.json").unlink()
    old = files.read_rows(folder / "metrics.jsonl")[0]
    rows = []
    for phase, given in enumerate(([0, 0, 0], [0.5, 9, 4], [0.25, 3, 5])):
        shares = [0.1, 0.2, 0.3, 0.15, 0.25] if phase else [0] * 5
        metrics = method_module("llmd4rec").Metrics(float(phase), 1.0, *given, shares)._asdict()
        named = {f"train/{name}": value for name, value in metrics.items()}
        rows.append(old | named | {"round": phase + 1})
    files.write_rows(folder / "metrics.jsonl", rows)
    return rows


def test_distillation_is_that_of_the_rounds_that_teach(copied):
    _, down, up = taught(copied)
    made = page([copied])
    assert "Left out" not in text_of(section(made, "Who teaches whom"))
    points = lambda name: {
        line.label: [*zip(line.x, line.y, strict=True)]
        for line in made.charts[f"llmd4rec-{name}"].lines
    }
    assert points("what-is-distilled") == {
        "L learns": [(2, down["train/distilled"])], "C learns": [(3, up["train/distilled"])],
    }  # fmt: skip
    assert points("rank-of-the-next-item") == {
        "L": [(2, down["train/rank_student"]), (3, up["train/rank_teacher"])],
        "C": [(2, down["train/rank_teacher"]), (3, up["train/rank_student"])],
    }
    shares = points("weights-of-the-places")
    assert list(shares) == ["0", "0 to 1", "1", "1 to 2", "2"]
    assert sum(y for line in shares.values() for x, y in line if x == 2) == pytest.approx(100)


def test_stories_are_shown_as_they_were_told(copied):
    record = json.loads((copied / "config.json").read_text())
    files.write_json(copied / "config.json", record | {"method": "agentcf_text"})
    told = f"# User 3\n\n- toys: took **{EVIL}**, not a # b -- chose right\n\nAfter: - none"
    files.write_text(copied / "stories.md", told)
    shown = section(page([copied]), "Memories")[1]
    assert [(node.tag, text_of(node)) for node in shown] == [
        ("h4", "User 3"), ("p", f"toys: took {EVIL}, not a # b -- chose right"),
        ("p", "After: - none"),
    ]  # fmt: skip
    assert text_of(shown[1][0]) == EVIL
    (copied / "stories.md").unlink()
    assert "stories.md: missing" in text_of(section(page([copied]), "Memories"))


def test_a_page_holds_markup_of_data_as_text_and_fetches_nothing(trained):
    made = page([trained("fedcia").out], users=40).html
    assert made.count("<script") == 1 and "<script>alert" not in made and "<i>" not in made
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;Sons&#x27;" in made
    assert not re.search(r"""\b(src|srcset|data|action|poster)=|@import|url\(|<link|<base""", made)
    assert set(re.findall(r'href="(.)', made)) == {"#"}
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', made)[1]
    assert policy.startswith("default-src 'none'; ") and "http" not in policy
    page_ids = re.findall(r' id="([^"]*)"', made)
    assert len(page_ids) == len(set(page_ids))
    assert set(re.findall('href="#([^"]*)', made)) <= set(page_ids)


def test_elements_escape_all_that_is_no_markup():
    inner = element("b", "<&>", title="\"'<")
    assert inner == '<b title="&quot;&#x27;&lt;">&lt;&amp;&gt;</b>'
    assert element("p", inner, "<b>", 3) == f"<p>{inner}&lt;b&gt;3</p>"


def test_curves_and_users_are_those_of_the_runs(trained, page_of):
    result, made = trained("fedcia"), page_of("fedcia")
    learning = {line.name: line for line in made.charts["results-learning"].lines}
    sent = {line.name: line for line in made.charts["results-accuracy-against-communication"].lines}
    for name, one in {"fedcia": result, **result.baselines}.items():
        values = [row["valid/NDCG@10"] for row in one.rows]
        assert learning[name].y == sent[name].y == values
        assert learning[name].x == [row["round"] for row in one.rows]
        assert sent[name].x == [row["bytes"] / 4 / 1e6 for row in one.rows]
        users = {
            line.name: line
            for line in made.charts["results-from-the-worst-served-user-to-the-best"].lines
        }
        expected = np.percentile(one.users["NDCG@10"], users[name].x)
        np.testing.assert_allclose(users[name].y, expected)
        each = one.users.groupby("client")["NDCG@10"].mean()
        clients = {
            line.name: line
            for line in made.charts["results-from-the-worst-served-client-to-the-best"].lines
        }
        np.testing.assert_allclose(clients[name].y, np.percentile(each, clients[name].x))
    _, *rows = table_of(section(made, "Test"))
    for name, *cells in rows:
        one = {"fedcia": result, **result.baselines}[name].values
        assert cells[0] == f"{one['test/NDCG@10']:.4f} ±{one['test/NDCG@10/se']:.4f}"
    assert table_of(section(made, "Differences"))[1][0] == "popularity"


def test_lists_are_those_recommended(trained):
    result = trained("fedcia")
    shown = section(page([result.out], users=2, k=4), "Lists")
    assert len(cards_of(shown)) == 2
    ranked = result.users.groupby("user")["NDCG@10"].mean().sort_values(kind="stable")
    rows = result.dataset.interactions.sort_values("timestamp", kind="stable")[::-1]
    titles = result.dataset.items["title"]
    for (name, lines), user in zip(cards_of(shown).items(), ranked.index[[0, -1]], strict=True):
        raw = result.dataset.users["raw_id"][user]
        assert name == f"User {raw}, NDCG@10 {ranked[user]:.3f}"
        own = titles[rows.loc[rows["user"] == user, "item"][:4]].tolist()
        best = jaxrec.recommend(result, [raw], k=4)
        expected = [[title, ""] for title in own]
        expected += [
            [*pair] for pair in zip(best["title"], best["score"].map("{:.3f}".format), strict=True)
        ]
        assert lines == expected


def test_settings_that_are_not_the_default_are_bold(page_of):
    shown = section(page_of("fedcia"), "Settings and environment")
    bold = {text_of(cell) for row in shown.iter("tr") for cell in row.iter("b")}
    assert {"rank", "4", "width", "rounds"} <= bold
    assert not {"learning_rate", "monitor", "split"} & bold
    assert {"jax", "python", "device", "digest"} <= {text_of(one) for one in shown.iter("th")}


def test_runs_that_differ_in_their_seed_have_one_colour_and_one_label(trained):
    made = page([trained(*which).out for which in (("ease", 0), ("ease", 1), ("fedcia", 0))])
    lines = {line.name: line for line in made.charts["results-learning"].lines}
    pair = [name for name in lines if "model=ease" in name]
    assert [name[-6:] for name in pair] == ["seed=0", "seed=1"]
    assert len({lines[name].colour for name in pair}) == 1
    assert lines[pair[0]].label == lines[pair[1]].label
    drawn = next(main_of(made).iter("figure"))
    shades = Counter(node.get("class") for node in drawn.iter("text") if node.get("class"))
    assert sorted(shades.values()) == [1, 1, 1]
    assert len({line.colour for line in lines.values()}) == 3
    titles = [node.text for node in main_of(made).iter("h2")]
    assert titles[0] == "Results" and len(titles) == 4 and set(pair) < set(titles)


def test_runs_that_are_measured_differently_share_no_chart(trained):
    made = page([trained("fedcia").out, trained("itemknn").out])
    titles = [node.text for node in main_of(made).iter("h2")]
    assert titles[:2] == ["Results: fedcia, popularity", "Results: itemknn"]
    assert [line.name for line in made.charts["results-itemknn-learning"].lines] == ["itemknn"]


def test_what_a_run_lacks_is_left_out_with_a_reason(copied):
    (copied / "result.json").unlink()
    made = page([copied])
    assert f"python -m jaxrec.train --resume {copied}" in text_of(section(made, "Test"))
    assert "has not ended" in text_of(section(made, "Differences"))
    assert cards_of(section(made, "Lists"))
    assert [
        one.name for one in made.charts["results-from-the-worst-served-user-to-the-best"].lines
    ] == ["popularity"]
    shutil.rmtree(copied / "checkpoint")
    shutil.rmtree(copied / "baselines")
    made = page([copied])
    for title in ("Similar items", "Lists"):
        assert "Left out" in text_of(section(made, title))
    assert "Left out: no run has ended" in text_of(section(made, "Users and clients"))
    (copied / "metrics.jsonl").unlink()
    made = page([copied])
    assert "Left out: no evaluation" in text_of(section(made, "Curves"))
    assert not made.charts


def test_a_run_that_went_on_since_its_result_has_not_ended(copied):
    rows = files.read_rows(copied / "metrics.jsonl")
    files.append_row(copied / "metrics.jsonl", rows[-1] | {"round": 5})
    assert "has not ended" in text_of(section(page([copied]), "Test"))


def test_without_titles_items_go_by_their_id(trained, data, tmp_path):
    bare = shutil.copytree(data, tmp_path / "bare")
    (bare / "items.parquet").unlink()
    out = tmp_path / "run"
    jaxrec.train("fedcia", str(bare), out=out, **TINY | METHODS["ease"])
    ids = set(map(str, pd.read_parquet(bare / "interactions.parquet")["item"]))
    shown = cards_of(section(page([out]), "Similar items"))
    assert {line[0] for lines in shown.values() for line in lines} < ids


def test_the_command_writes_a_page_and_figures(trained, tmp_path, capsys):
    run = str(trained("fedcia").out)
    for kind, start in {"png": b"\x89PNG", "pdf": b"%PDF"}.items():
        words = [run, "--out", str(tmp_path / kind / "p.html"), "--figures", kind]
        assert command(module.Options, module.act, words, module.ABOUT) == 0
        written = sorted(path for path in (tmp_path / kind).iterdir() if path.suffix == f".{kind}")
        assert len(written) == 4 and all(path.read_bytes().startswith(start) for path in written)
        assert capsys.readouterr().out.splitlines()[0] == f"report: {tmp_path / kind / 'p.html'}"


def test_as_a_program_it_says_one_line(trained, tmp_path):
    run = shutil.copytree(trained("ease").out, tmp_path / "run")
    program = [sys.executable, "-m", "jaxrec.report", str(run)]
    done = subprocess.run(program, capture_output=True, text=True, env=os.environ, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"report: {run / 'report.html'}\n"
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_wrong_words_are_one_clear_error(trained, copied, tmp_path, capsys):
    run = trained("fedcia").out
    act = lambda *words: command(module.Options, module.act, [*map(str, words)], module.ABOUT)
    assert act(tmp_path / "absent") == act(run, "--metric", "NDGC@10") == act() == 2
    missing, metric, nothing = capsys.readouterr().err.splitlines()
    assert (
        missing
        == f"error: {tmp_path / 'absent' / 'config.json'}: no run (No such file or directory)"
    )
    assert "metric = 'NDGC@10'" in metric and metric.endswith("the nearest is 'NDCG@10'")
    assert "no run folder given" in nothing
    assert not (tmp_path / "absent").exists()
    with pytest.raises(SettingError, match="was not measured"):
        page([run], "NDCG@10/se")
    with pytest.raises(SettingError, match="the same run twice"):
        page([run, copied])
    with pytest.raises(SettingError, match="users = 0"):
        page([run], users=0)
    for name in ("result.json", "config.json"):
        (copied / name).write_text("{}")
        with pytest.raises(CheckpointError, match="damaged"):
            page([copied])


@pytest.mark.parametrize("log", [False, True])
def test_charts_draw_any_lines(log):
    values = [[0.0], [0.0, 1.0], [1e-3, 10.0, 1e6], list(range(1, 301)), [2.0, 2.0]]
    lines = [Line(f"{n}", x, [0.5] * len(x), n, "x" * 6 * n) for n, x in enumerate(values)]
    for some in [lines, *([line] for line in lines)]:
        drawn = ElementTree.fromstring(charts.svg(Chart("t", "x", "y", some, log)))
        numbers = [float(n) for p in drawn.iter("path") for n in re.findall(r"[-\d.]+", p.get("d"))]
        assert np.isfinite(numbers).all() and min(numbers) >= 0 and max(numbers) <= charts.WIDTH
        assert all("nan" not in text_of(node) for node in drawn.iter("text"))
        charts.figure(Chart("t", "x", "y", some, log))
    assert len(list(drawn.iter("figure"))) == 1


def test_labels_are_moved_apart():
    at = charts._apart([100, 101, 102, 215, 216, 30])
    gaps = np.diff(sorted(at))
    assert min(gaps) >= charts.GAP and max(at) <= charts.BOTTOM and at[5] == 30


def browse(path, folder, *words):
    """What a browser prints of a page; its console goes to stderr."""
    quiet = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
        "--disable-background-networking --disable-component-update --enable-logging=stderr --v=0"
    )
    program = ["chromium", *quiet.split(), f"--user-data-dir={folder}", *words, path.as_uri()]
    return subprocess.run(program, capture_output=True, text=True, timeout=120)


def unguarded(made):
    """A page that lets its frame's script in."""
    return re.sub("<meta http-equiv[^>]*>", "", made)


PROBE = """<script>
onload = () => {
  const frame = document.querySelector("iframe").contentWindow, page = frame.document, told = {};
  const dot = page.querySelector('circle[tabindex="0"]');
  const read = () => dot.closest("figure").querySelector("output").textContent;
  const press = key => page.activeElement.dispatchEvent(
    new frame.KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
  dot.focus(); told.first = read();
  press("ArrowRight"); told.second = read();
  press("ArrowDown"); told.below = read();
  told.wide = page.documentElement.scrollWidth; told.window = frame.innerWidth;
  document.body.setAttribute("told", JSON.stringify(told));
  console.log("seen");
};
</script>"""


@needs_chromium
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_has_nothing_to_complain_of(trained, tmp_path, width):
    made = page([trained("fedcia").out, trained("rqfedrec").out, trained("ease").out]).html
    (tmp_path / "page.html").write_text(made, encoding="utf-8")
    size = f"--window-size={width},800"
    plain = browse(tmp_path / "page.html", tmp_path / "first", size, "--dump-dom")
    assert "</html>" in plain.stdout and "CONSOLE" not in plain.stderr

    frame = f'<iframe width={width} height=800 srcdoc="{escape(unguarded(made))}"></iframe>'
    (tmp_path / "probe.html").write_text(frame + PROBE, encoding="utf-8")
    probed = browse(tmp_path / "probe.html", tmp_path / "second", "--dump-dom")
    assert "seen" in probed.stderr  # so that silence above means something
    told = json.loads(unescape(re.search('told="([^"]*)"', probed.stdout)[1]))
    assert told["wide"] <= told["window"] == width
    who = [told[which].partition(":")[0] for which in ("first", "second", "below")]
    assert who[0] == who[1] != who[2] and all(who) and told["first"] != told["second"]
