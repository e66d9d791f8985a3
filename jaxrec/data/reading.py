"""How tables are read: the names that columns go by, and the options of whoever names the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxrec.settings.fields import check, fields, setting, unknown
from jaxrec.types import SettingError

# Compared in lower case without "_", "-" and spaces. A position orders rows without timestamp.
INTERACTIONS = {
    "user": ("user", "userid"),
    "item": ("item", "itemid", "movie", "movieid", "product", "productid", "artistid"),
    "rating": ("rating",),
    "timestamp": ("timestamp", "time"),
    "position": ("position", "order"),
    "domain": ("domain",),
    "client": ("client", "clientid"),
    "split": ("split",),
}
ITEMS = {
    "item": INTERACTIONS["item"],
    "title": ("title", "movietitle", "name"),
    "text": ("text", "description"),
    "category": ("category", "categories", "genre", "genres", "class"),
    "domain": ("domain",),
    "raw_id": ("rawid", "originid", "asin"),
}
USERS = {"user": INTERACTIONS["user"], "raw_id": ("rawid", "originid")}
LISTS = {"user": INTERACTIONS["user"], "candidates": ("candidates", "candidateitems")}
NAMES = INTERACTIONS | LISTS | ITEMS


def plain(column: object) -> str:
    """A column's name as it is compared."""
    return str(column).lower().replace("_", "").replace("-", "").replace(" ", "")


def shown(value: object, most: int = 80) -> str:
    """A value of a file in a message: in one line, without letters that steer a terminal."""
    text = str(value)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= most else f"{text[:most]}..."


def known_columns(found: Iterable[object], own: Mapping[str, str]) -> dict[Any, str]:
    """Our name of each column of interactions among `found`; one that `own` has is that column."""
    names = {alias: name for name, known in INTERACTIONS.items() for alias in known}
    stripped = {column: str(column).strip() for column in found}
    given = {theirs: name for name, theirs in own.items() if theirs in stripped.values()}
    known = {}
    for column, bare in stripped.items():
        name = given.get(bare) or names.get(plain(column))
        if name in INTERACTIONS and (bare in given or name not in given.values()):
            known[column] = name
    return known


@dataclass(frozen=True)
class Reading:
    """How tables are read; these are settings of a run too."""

    columns: tuple[str, ...] = ()
    """What your columns are called, where it is none of the known names: user="Customer ID"
    item=SKU rating=Stars; in Python and TOML also a mapping."""
    min_rating: float | None = setting(None)
    """Leave out what is rated lower; in the unit of the data's ratings. None: every row counts."""
    duplicates: Literal["auto", "first", "last", "sum", "error"] = "auto"
    """What a repeated pair of user and item becomes: its first or last row in time, its first row
    with the sum of the ratings (of ones where there are none), or an error; auto: the first, with a
    warning, if the times differ, else an error."""
    items_file: str = ""
    """Table of items that stands elsewhere than the interactions; a path."""
    encoding: str = ""
    """Encoding of tables of text, such as latin-1, cp1252 or gb18030; empty: UTF-8, or UTF-16 and
    UTF-32 where a byte order mark says so."""
    unpack_limit: float = setting(0.0, at_least=0)
    """Gigabytes that a compressed file may unpack to; 0: 4 GB and 200 times the file's size,
    whichever is less, and 0.1 GB in any case."""

    def __post_init__(self) -> None:
        check(self)
        theirs = list(self.own_names.values())
        if twice := [name for name in theirs if theirs.count(name) > 1]:
            raise SettingError(f"columns = {self.columns!r}: {twice[0]!r} can be one column only")
        if self.encoding:
            try:
                "a".encode(self.encoding).decode(self.encoding)
            except (LookupError, ValueError):
                raise SettingError(
                    f"encoding = {self.encoding!r}: Python knows none of that name; write utf-8, "
                    "utf-16, latin-1, cp1252 or gb18030, say"
                ) from None
        if self.items_file:  # so that a run goes on from any folder
            path = str(Path(self.items_file).expanduser().absolute())
            object.__setattr__(self, "items_file", path)

    @property
    def own_names(self) -> dict[str, str]:
        """The file's name of a column by ours; SettingError for what is no pair of names."""
        own: dict[str, str] = {}
        for word in self.columns:
            name, _, theirs = (part.strip() for part in word.partition("="))
            if not name or not theirs:
                raise SettingError(f"columns: {word!r}: write OURS=YOURS, such as item=SKU")
            if name not in NAMES:
                raise unknown(f"columns: {word!r}: there is no column {name!r}", name, NAMES)
            if name in own:
                raise SettingError(f"columns: {name} is {own[name]!r} already; give it once")
            own[name] = theirs
        return own

    def reading(self) -> dict[str, Any]:
        """These options alone, by name, whatever else the settings hold."""
        return {name: getattr(self, name) for name in fields(Reading)}


AS_IT_IS = Reading()


def reading_of(options: Mapping[str, Any]) -> Reading:
    """Options by name; SettingError for an unknown one and for a value that is refused."""
    known = fields(Reading)
    for name in options:
        if name not in known:
            raise unknown(f"{name}: no such option of reading", name, known)
    return Reading(**options)
