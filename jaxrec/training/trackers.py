"""Trackers: TensorBoard, W&B and MLflow, fed with the rows of a run's `metrics.jsonl`.

Each library is imported only when it is asked for. A resumed run is a new run of the same name
to W&B and MLflow.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxrec import files
from jaxrec.settings.fields import unknown
from jaxrec.training.progress import say
from jaxrec.types import SettingError

Log = Callable[[dict[str, float], int], Any]  # values by name, and the round they are of


@contextmanager
def tracking(names: Sequence[str], out: Path) -> Iterator[Callable[[str, files.Row], None]]:
    """A function of a method's name and a row, which writes it to the trackers `names`.

    They begin with the first row and end with the block. One that fails is told of and left out.
    Raises SettingError for an unknown one and for one that is not installed.
    """
    modules = {name: _imported(name) for name in names}
    with ExitStack() as stack:
        logs: dict[str, Log] = {}

        def attempt(name: str, act: Callable[[], Any]) -> Any:
            try:
                return act()
            except Exception as error:
                say(f"warning: {name}: {error}; the run goes on without it")
                logs.pop(name, None)
                modules.pop(name, None)

        def begin(name: str, module: ModuleType) -> Log:
            tracker = TRACKERS[name][1](module, out, _settings(out))
            log = tracker.__enter__()
            stack.push(lambda *error: attempt(name, lambda: tracker.__exit__(*error)))
            return log

        def write(method: str, row: files.Row) -> None:
            numbers: dict[str, float] = {
                f"{method}/{name}": value
                for name, value in row.items()
                if isinstance(value, int | float) and name != "round"
            }
            for name, module in list(modules.items()):
                if name not in logs:
                    logs[name] = attempt(name, partial(begin, name, module))
                if log := logs.get(name):
                    attempt(name, lambda log=log: log(numbers, row["round"]))

        yield write


@contextmanager
def _tensorboard(module: ModuleType, out: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    writer = module.Writer(str(out / "tensorboard"))
    try:
        yield (
            lambda numbers, step: (
                [writer.add_scalar(name, value, step) for name, value in numbers.items()]
                and writer.flush()
            )
        )
    finally:
        writer.close()


@contextmanager
def _wandb(module: ModuleType, out: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    with module.init(project="jaxrec", name=out.name, dir=str(out), config=dict(settings)) as run:
        run.define_metric("*", step_metric="round")  # a baseline begins at round 1 again
        yield lambda numbers, step: run.log({"round": step, **numbers})


@contextmanager
def _mlflow(module: ModuleType, out: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    # no "@" nor "(", and a file store cannot hold "a" beside "a/b"
    plain = lambda name: re.sub(r"[^\w.]", "_", name.replace("/", "."))
    with module.start_run(run_name=out.name):
        module.log_params(settings)
        yield lambda numbers, step: module.log_metrics(
            {plain(name): value for name, value in numbers.items()}, step=step
        )


TRACKERS = {
    "tensorboard": ("tensorboard.summary", _tensorboard),
    "wandb": ("wandb", _wandb),
    "mlflow": ("mlflow", _mlflow),
}


def _imported(name: str) -> ModuleType:
    if name not in TRACKERS:
        raise unknown(f"track = {name!r}: no such tracker", name, TRACKERS)
    try:
        return importlib.import_module(TRACKERS[name][0])
    except ImportError as error:
        raise SettingError(f"track = {name!r}: {error}; pip install {name}") from error


def _settings(out: Path) -> dict[str, Any]:
    return json.loads((out / "config.json").read_text())["settings"]
