"""Clients' models by their names, users' own modules among them.

jaxrec.CLIENT_MODELS["bilinear"] = Bilinear      # made of (key, users, width)
jaxrec.ITEM_ENCODERS["tower"] = Tower            # made of (key, items, text, width)
"""

from __future__ import annotations

from jaxrec.models.clients import ClientModel, factorisation
from jaxrec.settings.fields import unknown
from jaxrec.types import SettingError

PLAIN = ("mf", "lightgcn")
TAKEN = "fold_in", "gfcf", "ease", "gram", "table", "text", *PLAIN, "mlp"  # by models of our own
CLIENT_MODELS: dict[str, type] = {}
"""Flax modules that a client may train, by the name that `model` calls them."""
ITEM_ENCODERS: dict[str, type] = {}
"""Flax modules that make item vectors, by the name that `item_encoder` calls them."""


def known() -> tuple[str, ...]:
    """The names of all clients' models."""
    return (*PLAIN, "mlp", *CLIENT_MODELS)


def client_model(
    name: str, width: int, *, scale: float, layers: int = 0, encoder: str = "table"
) -> ClientModel:
    """The model called `name`: mf, lightgcn with `layers`, mlp, or one of `CLIENT_MODELS`.

    Raises SettingError for a name of a model or of an `encoder` of items that there is not.
    """
    encoders = ("table", "text", *ITEM_ENCODERS)
    yours = "register your own in jaxrec.{} first"
    if name not in known():
        found = f"no client model {name!r} among {', '.join(known())}"
        raise unknown(f"{found}; {yours.format('CLIENT_MODELS')}", name, known())
    if encoder not in encoders:
        found = f"no item encoder {encoder!r} among {', '.join(encoders)}"
        raise unknown(f"{found}; {yours.format('ITEM_ENCODERS')}", encoder, encoders)
    if taken := sorted({*CLIENT_MODELS, *ITEM_ENCODERS} & set(TAKEN)):
        raise SettingError(f"{taken[0]!r} is the name of a model of jaxrec's: choose another one")
    model = factorisation(width, scale, layers if name == "lightgcn" else 0)
    if name in PLAIN and encoder == "table":
        return model
    from jaxrec.models import modules  # Flax takes as long to import as the rest of a run's code

    if name not in PLAIN:
        model = modules.of_module(name, CLIENT_MODELS.get(name, modules.MLP), width, scale)
    if encoder == "table":
        return model
    return modules.with_encoder(model, ITEM_ENCODERS.get(encoder, modules.TextTower))
