"""Lists for users of a run in one call; `Model` serves many calls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from jaxrec.serving.model import Histories, Until, open_run
from jaxrec.training.run import Result
from jaxrec.types import Dataset


def recommend(
    run: str | Path | Result,
    users: Sequence[Any] | None = None,
    k: int = 20,
    *,
    data: Dataset | str | Path | None = None,
    until: Until = "test",
    **options: Any,
) -> pd.DataFrame:
    """The `k` best items of each user, by the state of the run's best round: `Model.recommend`.

    Args:
      run: folder of a run, or of one of its baselines, or what `train` or `reopen` returned.
      users: raw ids, as in the data that were loaded; None: all users.
      k: items a user.
      data: where a run in a folder has not kept its data: the Dataset, or where they are now.
      until: the last split whose rows are known: users are fitted on them, lists leave them out.
      **options: of `Model.recommend`, by name: exclude_seen, allowed, exclude, filters, unknown,
        block.

    Raises what `open_run` and `Model.recommend` do.
    """
    return open_run(run, data, until=until).recommend(users, k, **options)


def recommend_from_items(
    run: str | Path | Result,
    histories: Histories,
    k: int = 20,
    *,
    data: Dataset | str | Path | None = None,
    **options: Any,
) -> pd.DataFrame:
    """The `k` best items of new users, from the items they chose: `Model.recommend_from_items`.

    `histories` are items of one new user, who is called "new", or of several by their names. The
    other arguments and the errors are those of `recommend`.
    """
    return open_run(run, data).recommend_from_items(histories, k, **options)
