"""`all`: one run of every method that the data allow, each with its own defaults, quickest first.

It is a run of popularity, the floor, with all others as its baselines: one split, one protocol, one
table, and a folder that resumes, reports and compares as that of any run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxrec.data.check import knows
from jaxrec.methods import METHODS, method_module
from jaxrec.settings.fields import fields, unknown
from jaxrec.training.settings import TRAINING_LENGTH, RunConfig
from jaxrec.types import Dataset, SettingError

NAME = "all"
FLOOR = "popularity"
QUICKEST = ("itemknn", "ease", "als", "bpr", "fedals", "fedcia", "rqfedrec", "lightgcn")
ASKED_FOR = {"agentcf_text": "it asks a language model, which takes hours or costs money"}


def floor(
    method: str | None, settings: Mapping[str, Any], from_run: Any, resume: Any
) -> tuple[str | None, bool]:
    """The method that a run is of, and whether its baselines are yet to be chosen.

    Raises SettingError where a run of all is given settings that methods do not share, which are
    those of the data and their evaluation, or an earlier run.
    """
    if method != NAME:
        return method, False
    if from_run is not None:
        raise SettingError(f"from_run = '{from_run}': all begins anew; name the method of that run")
    own = (*TRAINING_LENGTH, "baselines")
    shared = [name for name in fields(RunConfig) if name not in own]
    for name in settings:
        if name.replace("-", "_") not in shared:
            message = f"{name}: with all, every method has its own; give settings of the data"
            raise unknown(message, name, shared)
    return FLOOR, resume is None


def others(dataset: Dataset) -> tuple[tuple[str, ...], dict[str, str]]:
    """The methods beside the floor that the data allow, quickest first, and why others are not."""
    has = knows(dataset)
    ordered = dict.fromkeys((*QUICKEST, *METHODS))
    del ordered[FLOOR]
    reasons = dict(ASKED_FOR)
    for name in ordered:
        lacking = [need for need in method_module(name).TRAITS.needs if not has[need]]
        if lacking and name not in reasons:
            reasons[name] = f"the data have no {' and no '.join(lacking)}"
    return tuple(name for name in ordered if name not in reasons), reasons
