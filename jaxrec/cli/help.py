"""`--help` of the training command, and the words that only it knows."""

from __future__ import annotations

import inspect
import types
from dataclasses import dataclass, make_dataclass
from pathlib import Path

from jaxrec.methods import METHODS, method_module
from jaxrec.training.settings import RunConfig, build


@dataclass(frozen=True)
class Files:
    """Files of a run, on the command line only."""

    config: Path | None = None
    """TOML file of settings, one key = value a line; words win over it."""
    out: Path | None = None
    """Folder to write the run to; by default runs/METHOD-DATA-TIME."""
    resume: Path | None = None
    """Folder of a run to continue; only rounds, patience and mesh may change."""
    from_run: Path | None = None
    """Folder of a run to go on from, with the newer rows that --data names; also --from RUN. Its
    method and settings hold unless they are given anew."""


@dataclass(frozen=True)
class Output:
    """What a run shows and where, on the command line only."""

    quiet: bool = False
    """No live line; what is wrong is still said."""
    json: bool = False
    """Print the final values as one line of JSON in place of tables."""
    distributed: str = ""
    """Be one process of many: auto (Slurm, Kubernetes, TPU, ...) or HOST:PORT,N,K, where process 0
    listens, their number and which this is. The first one writes, and needs --out or --resume."""
    track: tuple[str, ...] = ()
    """Also write every evaluation to tensorboard, wandb or mlflow."""


def print_help(method: str | None, program: str) -> None:
    """Print every setting of `method` with default, unit and meaning, or the methods; and exit."""
    import tyro

    lines = [f"- {name}: {_first_line(module)}" for name, module in METHODS.items()]
    lines.append("- all: every one of them that the data allow, in one table, quickest first.")
    about = "\n".join(["METHOD, fedcia by default, is one of", *lines])
    groups = {"files": Files(), "output": Output(), "run": RunConfig()}
    if method:
        about = inspect.getdoc(inspect.getmodule(method_module(method).make)) or ""
        program = f"{program} {method}"
        groups["run"], groups[method] = build(method, {})
    shown = make_dataclass("Settings", [(name, type(group)) for name, group in groups.items()])
    tyro.cli(
        tyro.conf.OmitArgPrefixes[shown],
        prog=program if method else f"{program} [METHOD]",
        description=about,
        default=shown(**groups),
        args=["--help"],
    )


def _first_line(module: types.ModuleType) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]
