"""Requests into answers: one call of the model for all requests of a batch.

Each kind has two functions for requests that have their options in common. `check(model, forms)`
says which to refuse and why, and `together(model, forms)` answers them, each with its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec.service.forms import Explain, Recommend, Score, Similar
from jaxrec.serving.model import SHORTEST, Model
from jaxrec.serving.names import Names, UnknownIds
from jaxrec.serving.newcomers import power_of_two

LEAST = SHORTEST + 1  # items that the model is asked for: one program makes lists of up to 32
Fields = dict[str, Any]
NOTHING: Fields = {"item": [], "score": []}  # a list of which every item is left out


class Kind(NamedTuple):
    """How requests of one address are answered."""

    key: Callable[[Any], tuple | None]  # of those that may share a call; None: alone
    size: Callable[[Any], int]  # users, or what stands for them
    check: Callable[[Model, Sequence[Any]], list[Exception | None]]
    together: Callable[[Model, Sequence[Any]], list[Fields]]


def check_recommend(model: Model, forms: Sequence[Recommend]) -> list[Exception | None]:
    """UnknownIds for users or items of histories that the run does not know, if so asked."""
    if forms[0].users:
        return _unknown(model.users, forms, [form.users for form in forms])
    return _unknown(model.items, forms, [chain(*_histories(form).values()) for form in forms])


def recommend(model: Model, forms: Sequence[Recommend]) -> list[Fields]:
    """Lists of users, or of new users by what they chose."""
    k, options = max(LEAST, *(form.k for form in forms)), forms[0].options()
    if forms[0].users:
        asked = [form.users or [] for form in forms]
        found = model.recommend(_texts(_each_once(asked)), k, **options)
        return _of_each(asked, [form.k for form in forms], _by_owner(found), model.users, "user")
    own = [_histories(form) for form in forms]
    histories = [[str(item) for item in items] for each in own for items in each.values()]
    found = _by_owner(model.recommend_from_items(dict(enumerate(histories)), k, **options))
    numbered = enumerate(histories)
    answers = []
    for form, each in zip(forms, own, strict=True):
        answer: Fields = {"lists": [], "unknown": []}
        for user in each:
            number, items = next(numbered)
            if (model.items.places(_texts(items)) >= 0).any() or form.unknown == "popularity":
                fields = found.get(str(number), NOTHING)
                answer["lists"].append({"user": user} | _cut(fields, form.k))
            else:
                answer["unknown"].append(user)
        answers.append(answer)
    return answers


def check_similar(model: Model, forms: Sequence[Similar]) -> list[Exception | None]:
    """UnknownIds for items that the run does not know, if so asked."""
    return _unknown(model.items, forms, [form.items for form in forms])


def similar(model: Model, forms: Sequence[Similar]) -> list[Fields]:
    """Lists of items like others."""
    asked = [form.items for form in forms]
    most = max(LEAST, *(form.k for form in forms))
    found = model.similar_items(_texts(_each_once(asked)), most, **forms[0].options())
    return _of_each(asked, [form.k for form in forms], _by_owner(found), model.items, "to")


def check_score(model: Model, forms: Sequence[Score]) -> list[Exception | None]:
    """UnknownIds for pairs that the run does not know, if so asked."""
    users = _unknown(model.users, forms, [form.users for form in forms])
    items = _unknown(model.items, forms, [form.items for form in forms])
    return [user or item for user, item in zip(users, items, strict=True)]


def score(model: Model, forms: Sequence[Score]) -> list[Fields]:
    """Scores of pairs, null for those that are not known."""
    pairs = [np.broadcast_arrays(_texts(form.users), _texts(form.items)) for form in forms]
    user, item = (np.concatenate(part) for part in zip(*pairs, strict=True))
    known = (model.users.places(user) >= 0) & (model.items.places(item) >= 0)
    scores = np.full(len(user), np.nan)
    scores[known] = model.score(user[known], item[known])["score"]
    ends = np.cumsum([len(users) for users, _ in pairs])[:-1]
    return [{"score": _numbers(part)} for part in np.split(scores, ends)]


def explain(model: Model, forms: Sequence[Explain]) -> list[Fields]:
    """What a user's items carry of the score of an item."""
    form = forms[0]
    table = model.explain(str(form.user), str(form.item), form.k)
    return [_columns(table)]


def _shape(form: Recommend | Similar) -> tuple:
    """Lists that come from the device at the same length, under the same options."""
    which = [name for name in ("users", "items", "histories") if getattr(form, name, None)]
    new = which != ["users"]
    return "new" if new else "known", power_of_two(max(LEAST, form.k)), form.key()


KINDS: Mapping[str, Kind] = {
    "recommend": Kind(
        _shape,
        lambda form: len(form.users or _histories(form)),
        check_recommend,
        recommend,
    ),
    "similar": Kind(_shape, lambda form: len(form.items), check_similar, similar),
    "score": Kind(
        lambda form: (), lambda form: max(len(form.users), len(form.items)), check_score, score
    ),
    "explain": Kind(lambda form: None, lambda form: 1, lambda model, forms: [None], explain),
}


def _unknown(names: Names, forms: Sequence[Any], asked: Sequence[Any]) -> list[Exception | None]:
    """UnknownIds for each request that has such ids, `asked`, and does not say what to do."""
    texts = [_texts(ids) for ids in asked]
    places = names.places(np.concatenate(texts))
    parts = np.split(places, np.cumsum([len(each) for each in texts])[:-1])
    found: list[Exception | None] = []
    for form, own, part in zip(forms, texts, parts, strict=True):
        try:
            if form.unknown == "error" and (part < 0).any():
                names.known(own)
            found.append(None)
        except UnknownIds as error:
            found.append(error)
    return found


def _histories(form: Recommend) -> Mapping[str, list]:
    return {"new": form.items} if form.items else form.histories or {}


def _texts(ids: Any) -> np.ndarray:
    return np.array([str(each) for each in ids], object)


def _each_once(asked: Sequence[Sequence[Any]]) -> list[str]:
    """The ids of all requests, as texts, where they stand first."""
    return list(dict.fromkeys(str(each) for ids in asked for each in ids))


def _by_owner(table: pd.DataFrame) -> dict[str, Fields]:
    """The lists of a table by whose they are, which its first or only such column says."""
    whose = "to" if "to" in table else "user"
    starts = np.flatnonzero(table["rank"].to_numpy() == 1)
    owners = table[whose].to_numpy()[starts].astype(str)
    columns = _columns(table, whose, "rank")
    ends = np.append(starts, len(table))[1:]
    return {
        owner: {name: values[start:end] for name, values in columns.items()}
        for owner, start, end in zip(owners.tolist(), starts.tolist(), ends.tolist(), strict=True)
    }


def _columns(table: pd.DataFrame, *but: str) -> Fields:
    """Lists for JSON, which knows neither NaN nor infinity: they become null."""
    numbers = ("score", "contribution")
    return {
        name: _numbers(values.to_numpy())
        if name in numbers
        else (values.astype(object).where(values.notna(), None) if values.hasnans else values)
        .tolist()
        for name, values in table.items()
        if name not in but
    }  # fmt: skip


def _numbers(values: np.ndarray) -> list[float | None]:
    finite = np.isfinite(values)
    if finite.all():
        return values.tolist()
    return [number if fine else None for number, fine in zip(values.tolist(), finite, strict=True)]


def _of_each(
    asked: Sequence[Sequence[Any]],
    k: Sequence[int],
    found: Mapping[str, Fields],
    names: Names,
    whose: str,
) -> list[Fields]:
    """The lists of each request in its order, by ids as the data have them; and unknown ids.

    A known id whose every item is left out has an empty list.
    """
    every = _each_once(asked)
    places = dict(zip(every, names.places(_texts(every)).tolist(), strict=True))
    answers = []
    for ids, most in zip(asked, k, strict=True):
        lists, unknown = [], []
        for text, each in {str(each): each for each in ids}.items():
            if (place := places[text]) < 0 and text not in found:
                unknown.append(each)
                continue
            called = names.raw[place] if place >= 0 else each
            lists.append({whose: called} | _cut(found.get(text, NOTHING), most))
        answers.append({"lists": lists, "unknown": unknown})
    return answers


def _cut(fields: Fields, most: int) -> Fields:
    """A list's first items; who made it is said once."""
    cut = {name: values[:most] for name, values in fields.items()}
    return cut | {"by": cut["by"][0]} if "by" in cut else cut
