"""Synthetic data with planted tastes and a known optimum.

Every item has a genre and a mood, every user a liking for each; user u's history is drawn without
replacement with odds exp(l[u, i]) (Plackett-Luce, by the Gumbel trick):

    l[u, i] = likes[u, genre(i)] + likes[u, mood(i)] + likes[u, domain(i)] + popularity[i]

Given what is already drawn, swapping a held-out item for one of higher odds never lowers its
probability, so ranking by l is the best possible ranking in expectation.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxrec.types import Dataset, SettingError

_GENRES = ("Crime", "Space", "Romance", "Western", "Fantasy", "Spy", "Sea", "Horror")
_MOODS = ("Gentle", "Gloomy", "Funny", "Tense", "Dreamy", "Grand")
_SUBJECTS = (
    *("Lantern", "Harbour", "Orchard", "Clock", "River", "Mirror", "Garden", "Train", "Winter"),
    *("Island", "Letter", "Tower", "Violin", "Desert", "Bridge", "Mountain", "Market", "Forest"),
)
_FORMS = (  # by domain: the kind of item, its title
    ("film", "The {subject}: A {mood} {genre} Film"),
    ("book", "{mood} {genre} Stories of the {subject}"),
)
_START, _DAY = 1_600_000_000, 86_400


def synthetic(
    users: int = 400,
    items: int = 300,
    *,
    clients: int = 40,
    length: int = 40,
    seed: int = 0,
) -> Dataset:
    """About `length` interactions for each user with films (domain 0) and books (domain 1).

    Columns: `user`, `item`, `timestamp` (the order within a user carries no taste), `domain`,
    `client` (contiguous blocks of users). Tastes are shared by both domains. No `split` column.
    """
    if not (1 <= clients <= users and 1 <= length <= items // 2):
        raise SettingError(
            f"clients={clients} must be from 1 to users={users} and length={length} from 1 to half "
            f"of items={items}"
        )
    rng = np.random.default_rng(seed)
    odds, attributes = _plant(users, items, rng)
    lengths = np.rint(length * np.exp(rng.normal(-0.08, 0.4, users)))
    lengths = np.clip(lengths, min(length, 5), items // 2)
    drawn = np.arange(items) < lengths[:, None]
    user = np.nonzero(drawn)[0]
    item = np.argsort(-(odds + rng.gumbel(size=odds.shape)), axis=1)[drawn]
    item = item[np.lexsort((rng.random(len(user)), user))]
    start = _START + rng.integers(0, 365 * _DAY, users)[:, None]
    time = start + np.cumsum(rng.integers(60, 2 * _DAY, odds.shape), axis=1)

    catalogue = _describe(*attributes)
    interactions = pd.DataFrame(
        {
            "user": user.astype("int32"),
            "item": item.astype("int32"),
            "timestamp": time[drawn],
            "domain": catalogue["domain"].to_numpy()[item],
            "client": (user * clients // users).astype("int32"),
        }
    )
    ids = np.arange(users, dtype="int32")
    return Dataset("synthetic", interactions, catalogue, pd.DataFrame({"user": ids, "raw_id": ids}))


def optimum(
    users: int = 400,
    items: int = 300,
    *,
    clients: int = 40,
    length: int = 40,
    seed: int = 0,
) -> np.ndarray:
    """The planted log-odds l, f32 [U, I], of `synthetic` called with the same arguments."""
    del clients, length
    return _plant(users, items, np.random.default_rng(seed))[0].astype(np.float32)


def _plant(
    users: int, items: int, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The log-odds [U, I] and each item's (genre, mood, domain)."""
    sizes = (len(_GENRES), len(_MOODS), len(_FORMS))
    attributes = tuple(rng.permutation(np.arange(items) % size) for size in sizes)
    odds = -0.6 * np.log1p(rng.permutation(items))[None, :]
    for size, strength, attribute in zip(sizes, (1.6, 1.0, 0.6), attributes, strict=True):
        odds = odds + strength * rng.normal(size=(users, size))[:, attribute]
    return odds, attributes


def _describe(genre: np.ndarray, mood: np.ndarray, domain: np.ndarray) -> pd.DataFrame:
    """Titles, texts and categories made from the attributes; every title is different."""
    alike = pd.DataFrame({"genre": genre, "mood": mood, "domain": domain})
    turn = alike.groupby(list(alike)).cumcount().to_numpy()
    subject = (turn + genre + 5 * mood) % len(_SUBJECTS)
    part = turn // len(_SUBJECTS) + 1
    rows = []
    for g, m, d, s, p in zip(genre, mood, domain, subject, part, strict=True):
        kind, form = _FORMS[d]
        words = {"genre": _GENRES[g], "mood": _MOODS[m], "subject": _SUBJECTS[s]}
        title = form.format(**words) + (f", Part {p}" if p > 1 else "")
        text = f"A {kind} about the {words['subject']}; {words['genre']}, {words['mood']}.".lower()
        rows.append((title, text.capitalize(), f"{words['genre']}|{words['mood']}"))
    ids = np.arange(len(genre), dtype="int32")
    described = pd.DataFrame(rows, columns=["title", "text", "category"])
    described.insert(0, "item", ids)
    return described.assign(domain=domain.astype("int8"), raw_id=ids)
