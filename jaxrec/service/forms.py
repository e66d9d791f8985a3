"""What requests and answers hold: the types that the OpenAPI page shows.

An id is a text or a whole number, looked up as a text. Texts of ids are short, because arrays of
texts take the length of the longest for each.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt

from jaxrec.types import SettingError

LONGEST = 256  # letters of an id


def _id(value: Any) -> Any:
    """A text or a whole number; ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("an id is a text or a whole number")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("the whole number of an id has at most 64 bits; write it as a text")
    if isinstance(value, str) and len(value) > LONGEST:
        raise ValueError(f"an id has at most {LONGEST} letters")
    if isinstance(value, str) and not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise ValueError("an id holds half of a character (a lone surrogate)")
    return value


Id = Annotated[int | str, BeforeValidator(_id)]
Name = Annotated[str, BeforeValidator(_id)]
Ids = Annotated[list[Id], Field(min_length=1)]
Known = Literal["error", "skip"]


class Form(BaseModel):
    """A request: a field that it does not have is refused."""

    model_config = ConfigDict(extra="forbid")

    def key(self) -> str:
        """What requests that share a call of the device have in common."""
        return self.model_dump_json(exclude={"users", "items", "histories", "k"})


class Listing(Form):
    """What lists are to hold."""

    k: Annotated[StrictInt, Field(ge=1)] = 20
    allowed: list[Id] | None = Field(None, description="the items that may be listed; null: all")
    exclude: list[Id] | None = Field(None, description="items that are not listed")
    filters: dict[Name, Id | list[Id]] | None = Field(
        None, description="values of the items' columns, one or several of each"
    )
    unknown: Literal["error", "skip", "popularity"] = Field(
        "error",
        description="what an id that the run does not know gets: 404, nothing, popular items",
    )

    def options(self) -> dict[str, Any]:
        """The arguments of a `Model` beside who is asked for, and `k`."""
        texts = lambda ids: None if ids is None else [str(each) for each in ids]
        chosen = {"allowed": texts(self.allowed), "exclude": texts(self.exclude)}
        return chosen | {"filters": self.filters or None, "unknown": self.unknown}


class Recommend(Listing):
    """One of `users`, `items` (of one new user) and `histories` (of new users, by name)."""

    users: Ids | None = None
    items: Ids | None = Field(None, description="what one new user chose, oldest first")
    histories: dict[Name, Ids] | None = Field(
        None, description="what each new user chose, oldest first", min_length=1
    )
    exclude_seen: bool = True

    def options(self) -> dict[str, Any]:
        """As of every list, and whether a user's own items are left out."""
        return super().options() | {"exclude_seen": self.exclude_seen}

    def bounded(self, users: int, k: int, items: int) -> None:
        """SettingError where there is more than the limits allow, or not one of the three."""
        given = [name for name in ("users", "items", "histories") if getattr(self, name)]
        if len(given) != 1:
            raise SettingError(
                f"{' and '.join(given) or 'nobody'}: give one of users, items and histories"
            )
        histories = {"new": self.items} if self.items else self.histories or {}
        at_most("users", len(self.users or histories), users)
        at_most("k", self.k, k)
        for name, own in histories.items():
            at_most(f"items of {name[:40]}", len(own or ()), items)


class Similar(Listing):
    """The items whose like are listed."""

    items: Ids

    def bounded(self, users: int, k: int, items: int) -> None:
        """SettingError where there is more than the limits allow."""
        del items
        at_most("items", len(self.items), users)
        at_most("k", self.k, k)


class Score(Form):
    """Pairs: as many users as items, or one of either for all of the other."""

    users: Ids
    items: Ids
    unknown: Known = Field("error", description='"skip": a pair that is not known has no score')

    def bounded(self, users: int, k: int, items: int) -> None:
        """SettingError where there is more than the limits allow, or no pairs are made."""
        del k, items
        numbers = len(self.users), len(self.items)
        if numbers[0] != numbers[1] and 1 not in numbers:
            raise SettingError(
                f"{numbers[0]} users and {numbers[1]} items: give as many of each, or one"
            )
        at_most("pairs", max(numbers), users)


class Explain(Form):
    """A user and an item; `k` items that carry most of its score are named."""

    user: Id
    item: Id
    k: Annotated[StrictInt, Field(ge=1)] = 10

    def bounded(self, users: int, k: int, items: int) -> None:
        """SettingError where there is more than the limits allow."""
        del users, items
        at_most("k", self.k, k)


def at_most(what: str, number: int, most: int) -> None:
    """SettingError for a number above its limit."""
    if number > most:
        raise SettingError(f"{what}: {number:,} in one request, at most {most:,} are answered")


class Items(BaseModel):
    """Items of a list, best first: the n-th of each field is of the n-th item."""

    item: list[Any]
    title: list[str | None] | None = None
    score: list[float | None]


class List(Items):
    """The list of a user. `by` says who made it where popular items may stand in."""

    user: Any
    by: Literal["model", "popularity"] | None = None


class Likes(Items):
    """The items like `to`."""

    to: Any
    by: Literal["model", "popularity"] | None = None


class Answer(BaseModel):
    """Every answer names the run, and counts the runs that were opened until it."""

    run: str
    opened: int


class Lists(Answer):
    """Lists in the order asked for, each user once."""

    lists: list[List]
    unknown: list[Any] = Field(description="who the run does not know, and has no list")


class SimilarItems(Answer):
    """Lists in the order asked for, each item once."""

    lists: list[Likes]
    unknown: list[Any] = Field(description="items that the run does not know, without a list")


class Scores(Answer):
    """Scores in the order of the pairs; null where a pair is not known."""

    score: list[float | None]


class Reasons(Answer):
    """What the user's items carry of the score, largest first."""

    item: list[Any]
    title: list[str | None] | None = None
    contribution: list[float | None]


class Health(BaseModel):
    """Whether the service answers (`ready`, status 200, else 503), and from which run."""

    ready: bool
    run: str | None = Field(description="the folder, links followed")
    opened: int = Field(description="runs opened since the start")
    since: str | None = Field(description="when the run was opened, UTC")
    users: int | None
    items: int | None
    refused: str | None = Field(description="why the run that is in place now is not served")
    versions: dict[str, str]


class Refusal(BaseModel):
    """What is wrong, in one line."""

    error: str
