"""How a federation begins: from settings, a list of items and connected clients to terms."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Literal

import jax.numpy as jnp
import pandas as pd

from jaxrec.data.text import settled_encoder, texts, vectors
from jaxrec.deployment.catalogue import digest_of
from jaxrec.deployment.coordinator import Ask, users_of
from jaxrec.deployment.party import nobody
from jaxrec.deployment.terms import Terms
from jaxrec.training.progress import say
from jaxrec.training.settings import RunConfig, reads
from jaxrec.types import Clients, Data, Dataset, SettingError


def check_terms(method: str, config: Any) -> None:
    """Raises SettingError for settings that clients on machines of their own cannot have."""
    _ = Terms(method, 1, 1, 1, settings=_plain(config)).config


def open_terms(
    method: str,
    run: RunConfig,
    config: Any,
    items: pd.DataFrame,
    ask: Ask,
    nodes: Iterable[str],
    *,
    clients: int,
    users: int = 0,
    progress: bool = True,
) -> Terms:
    """The terms to offer to clients.

    Args:
      items: the common list; see `catalogue.read_list`.
      ask: the transport; it asks the `nodes` for their numbers of users.
      clients: places for clients.
      users: of all clients together, at most; 0: those of the `nodes`.

    Raises SettingError where no node says how many users it has.
    """
    if not users:
        found, left_out = users_of(ask, nodes)
        for name, why in left_out.items():
            say(f"{name} is left out: {why}", shown=progress)
        if not (users := sum(found.values())):
            raise SettingError("users = 0: no client says how many it has; give the most there are")
    text, number = _encoder(method, run, config, items), len(items)
    settings, digest = _plain(config), digest_of(items)
    return Terms(method, number, clients, users, run.seed, settings, digest, text)


def public_data(terms: Terms, items: pd.DataFrame) -> Data:
    """The coordinator's data: what all parties know of the items, and nobody's rows."""
    row = jnp.zeros((1, 1), jnp.int32)
    like = Data((Clients(row, row, row > 0, row, row[0], jnp.zeros(1)),))
    if terms.text:
        none = pd.DataFrame({"user": [], "item": []})
        dataset = Dataset("the list of items", none, items, pd.DataFrame({"user": []}))
        like = like._replace(text=jnp.asarray(vectors(dataset, terms.text).vectors))
    return nobody(terms, like)


def _encoder(
    method: str, run: RunConfig, config: Any, items: pd.DataFrame
) -> Literal["", "minilm", "tfidf"]:
    """What every party makes vectors of the items' texts with; nothing where none are read."""
    wanted = reads({method: config})
    if not (wanted.text or (wanted.any_text and any(texts(items)))):
        return ""
    encoder = settled_encoder(run.text)
    if encoder not in ("minilm", "tfidf"):
        raise SettingError(f"text = {encoder!r}: clients do not have it; set minilm or tfidf")
    return encoder


def _plain(config: Any) -> dict[str, Any]:
    """A config as JSON has it."""
    return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(config).items()}
