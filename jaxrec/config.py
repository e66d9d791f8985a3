"""Settings: one flat namespace, defaults <- the method's RUN <- TOML file <- words.

The settings of the run (`RunConfig`) and of the method (its `Config`) share one list of names,
so a TOML file is flat `key = value` lines and the command line flat `--key value` words. Nothing
is guessed: an unknown name or a value of another type is refused, with the nearest name.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxrec import mesh
from jaxrec.methods import METHODS
from jaxrec.types import Data, SettingError

METRICS = ("NDCG", "Recall", "HR", "MAP", "Precision", "F1", "meanF1")
"""What may be monitored at each of `ks`."""


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run, whatever the method."""

    data: str = "synthetic"
    """A built-in name, a folder under JAXREC_DATA, or the path of a folder or file."""
    split: Literal["auto", "given", "leave-one-out", "ratio", "time"] = "auto"
    """How train, valid and test are told apart; auto: given if the data has it, else ratio."""
    valid: float = 0.1
    """Validation part of a ratio or time split; fraction of the interactions."""
    test: float = 0.2
    """Test part of a ratio or time split; fraction of the interactions."""
    min_user: int = 0
    """k-core: drop users with fewer interactions."""
    min_item: int = 0
    """k-core: drop items with fewer interactions."""
    partition: Literal["auto", "given", "user", "blocks", "random", "dirichlet"] = "auto"
    """How users become clients; auto: given if the data has it, else blocks."""
    clients: int = 100
    """Number of clients of a blocks, random or dirichlet partition; at most the users."""
    alpha: float = 0.5
    """Concentration of a dirichlet partition, no unit; smaller is more skewed."""
    text: str = "auto"
    """What makes vectors of the items' texts, for methods that read them: minilm, tfidf, the path
    of a local sentence encoder's folder, or auto: minilm where it is installed, else tfidf."""
    random_positives: float = 0.0
    """Noise, to test robustness: random train rows added to each user's; a fraction of them."""
    seed: int = 0
    """Seed of every random number: split, partition, training, candidates."""
    rounds: int = 100
    """Rounds of training at most; a one-shot method takes one."""
    evaluate_every: int = 5
    """Rounds between two evaluations on the validation split."""
    patience: int = 5
    """Stop after this many evaluations without a better value; 0: never."""
    monitor: str = "NDCG@10"
    """Validation metric that picks the best state; higher is better."""
    ks: tuple[int, ...] = (5, 10, 20)
    """List lengths at which metrics are taken; items."""
    candidates: int = 0
    """Negatives per held-out line; 0: rank the full catalogue."""
    listed: bool = False
    """Take the negatives from the lists of candidates that come with the data, the first ones of
    each but for the held-out item, in place of drawing them."""
    ranking: Literal["users", "rows", "domains"] = "users"
    """What one ranking has to find: users, all held-out items of a user; rows, one held-out row;
    domains, one held-out row among the items of its domain."""
    mask_history: bool = True
    """Leave the items a user already has out of the full ranking."""
    catalogue: Literal["all", "known"] = "all"
    """known: rank no item, and hold out none, that has no row in an earlier split. A log holds such
    items only because somebody takes them later, which gives them away."""
    cold: int = 0
    """Also report test metrics on items with at most this many train rows; 0: do not."""
    baselines: tuple[str, ...] = ("fedavg", "local_only", "popularity")
    """Methods trained after this one on the same data, each with its own defaults."""
    mesh: str = ""
    """Devices that the work is divided over, such as clients=8, batch=8 or users=8, whichever the
    method divides; empty: one device."""

    def __post_init__(self) -> None:
        for name in (
            "min_user", "min_item", "random_positives", "seed", "patience", "candidates", "cold",
        ):  # fmt: skip
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("clients", "rounds", "evaluate_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("valid", "test"):
            _require(0 < getattr(self, name) < 1, name, getattr(self, name), "between 0 and 1")
        parts = self.valid + self.test
        _require(parts < 1, "valid + test", parts, "below 1: something must be left to train on")
        _require(self.alpha > 0, "alpha", self.alpha, "above 0")
        masks = self.mask_history or not self.candidates
        rule = "true where candidates > 0: those are drawn from items the user never had"
        _require(masks, "mask_history", self.mask_history, rule)
        rule = "false where candidates = 0, which ranks all items"
        _require(self.candidates or not self.listed, "listed", self.listed, rule)
        _require(self.ks and min(self.ks) >= 1, "ks", self.ks, "one or more numbers from 1 up")
        if self.monitor not in (known := ["MRR", *(f"{m}@{k}" for m in METRICS for k in self.ks)]):
            raise unknown(f"monitor = {self.monitor!r}: is not measured", self.monitor, known)
        for name in self.baselines:
            method_module(name)
        mesh.read(self.mesh)

    @property
    def client_devices(self) -> int:
        """Devices that the clients are divided over."""
        axis, number = mesh.read(self.mesh)
        return number if axis == "clients" else 1


@dataclass(frozen=True)
class Files:
    """Files of a run, on the command line only."""

    config: Path | None = None
    """TOML file of settings, one key = value a line; words win over it."""
    out: Path | None = None
    """Folder to write the run to; by default runs/METHOD-DATA-TIME."""
    resume: Path | None = None
    """Folder of a run to continue; only rounds, patience and mesh may change."""


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


TRAINING_LENGTH = ("rounds", "evaluate_every", "patience")
"""Run settings that belong to a method rather than to the data and its evaluation."""


class Field(NamedTuple):
    """One setting: its type and its default."""

    hint: Any
    default: Any


def method_module(name: str) -> types.ModuleType:
    """The module of method `name`; SettingError with the nearest name for an unknown one."""
    if name not in METHODS:
        raise unknown(f"no method {name!r} among {_list(METHODS)}", name, METHODS)
    return METHODS[name]


def reads(configs: Mapping[str, Any]) -> dict[str, bool]:
    """What these methods, with their settings, need beside clients: arguments of `prepare`.

    "text", vectors of the items' texts; "titles", the texts; "history", the rows by time.
    """
    modules = {method_module(name): config for name, config in configs.items()}
    return {
        "text": any(of.reads_text(c) for of, c in modules.items() if hasattr(of, "reads_text")),
        "titles": any(getattr(of, "reads_titles", False) for of in modules),
        "history": any(getattr(of, "reads_history", False) for of in modules),
    }


def check_data(method: str, config: Any, data: Data) -> None:
    """Refuse packed data that `method` so configured cannot work on, as far as it says so."""
    getattr(method_module(method), "check_data", lambda config, data: None)(config, data)


def settings(method: str) -> dict[str, Field]:
    """Every setting of a run of `method` by name, defaults as the method wants them."""
    module = method_module(method)
    run = _fields(RunConfig, getattr(module, "RUN", {}))
    own = _fields(module.Config)
    if clash := sorted(set(run) & set(own)):
        raise SettingError(f"settings of method {method} clash with those of the run: {clash}")
    return run | own


def build(method: str, given: Mapping[str, Any]) -> tuple[RunConfig, Any]:
    """Checked values by name -> the run's settings and the method's. Ranges are checked here."""
    values = {name: field.default for name, field in settings(method).items()} | dict(given)
    configs = RunConfig, method_module(method).Config
    return tuple(
        cls(**{field.name: values[field.name] for field in fields(cls)}) for cls in configs
    )


def baseline_settings(method: str, run: RunConfig) -> tuple[RunConfig, Any]:
    """Settings of a baseline of `run`: its data and evaluation, and the method's own defaults."""
    own = (*TRAINING_LENGTH, "baselines")
    shared = {f.name: getattr(run, f.name) for f in fields(run) if f.name not in own}
    return build(method, shared | {"baselines": ()})


def read_settings(
    method: str, toml: Path | None = None, words: Sequence[str] | Mapping[str, Any] = ()
) -> tuple[RunConfig, Any]:
    """Settings of a run: defaults <- the method's RUN <- `toml` <- `words`.

    `words` are command-line words (`["--rounds", "30"]`) or values by name (`{"rounds": 30}`).
    Raises SettingError for what is unknown, of another type or out of range.
    """
    given = read_toml(toml, method)[1] if toml else {}
    parse = read_values if isinstance(words, Mapping) else read_words
    return build(method, given | parse(method, words))


def read_toml(path: Path, method: str | None = None) -> tuple[str, dict[str, Any]]:
    """The method a flat TOML file is for (`method = "..."`, else `method`) and its settings.

    A table `[sweep]` is for `jaxrec.sweep` and passed over.
    """
    table = _toml(path)
    table.pop("sweep", None)
    named = table.pop("method", None)
    if method and named and method != named:
        raise SettingError(f"{path}: is for method {named!r}, not {method!r}")
    method = method or named or "fedcia"
    return method, read_values(method, table, f"{path}: ")


def read_sweep_table(path: Path) -> dict[str, Any]:
    """The table `[sweep]` of a TOML file; empty where it has none."""
    table = _toml(path).get("sweep", {})
    if not isinstance(table, dict):
        raise SettingError(f"{path}: sweep = {table!r}: must be a table, [sweep]")
    return table


def read_values(method: str, values: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Values by name, each checked against its setting's type; `source` begins the messages."""
    known = settings(method)
    checked = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name not in known:
            raise unknown(f"{source}{given}: no such setting of {method}", name, known)
        try:
            checked[name] = coerce(value, known[name].hint)
        except TypeError as error:
            raise SettingError(f"{source}{given} = {value!r}: expected {error}") from None
    return checked


def read_words(method: str, words: Sequence[str]) -> dict[str, Any]:
    """Command-line words (`--key value ...`, `--flag`, `--no-flag`) -> values by name."""
    known = settings(method)
    return dict(_parse(group, known, method) for group in _groups(words))


def take_options(options: type, words: Sequence[str]) -> tuple[Any, list[str]]:
    """The words that fill `options`, a dataclass with a default for every field; the others."""
    known = _fields(options)
    groups = _groups(words)
    own = [group for group in groups if _known_as(group, known) in known]
    others = [word for group in groups if group not in own for word in group]
    return options(**_once(own, known)), others


def read_options(options: type, words: Sequence[str]) -> Any:
    """Words that fill `options`, a dataclass with a default for every field."""
    known = _fields(options)
    return options(**_once(_groups(words), known))


def print_help(method: str | None, program: str) -> None:
    """Print every setting of `method` with default, unit and meaning; without one, the methods."""
    import tyro

    lines = [f"- {name}: {_first_line(module)}" for name, module in METHODS.items()]
    about = "\n".join(["METHOD, fedcia by default, is one of", *lines])
    groups = {"files": Files(), "output": Output(), "run": RunConfig()}
    if method:
        about, program = method_module(method).__doc__ or "", f"{program} {method}"
        groups["run"], groups[method] = build(method, {})
    shown = make_dataclass("Settings", [(name, type(group)) for name, group in groups.items()])
    tyro.cli(
        tyro.conf.OmitArgPrefixes[shown],
        prog=program if method else f"{program} [METHOD]",
        description=about,
        default=shown(**groups),
        args=["--help"],
    )


def unknown(message: str, name: str, known: Iterable[str]) -> SettingError:
    """An error that ends with the known name nearest to `name`."""
    nearest = difflib.get_close_matches(name, list(known), 1, cutoff=0)
    return SettingError(f"{message}; the nearest is {nearest[0]!r}" if nearest else message)


def coerce(value: Any, hint: Any) -> Any:
    """`value` of TOML, JSON or Python as type `hint`; TypeError says what was expected."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in inner:
            return value
    elif origin in (types.UnionType, typing.Union):
        for option in inner:
            with contextlib.suppress(TypeError):
                return coerce(value, option)
    elif origin is tuple and isinstance(value, list | tuple):
        hints = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        with contextlib.suppress(TypeError, ValueError):
            return tuple(coerce(one, hint) for one, hint in zip(value, hints, strict=True))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    elif hint in (bool, str) and isinstance(value, hint):
        return value
    elif hint in (None, type(None)) and value is None:
        return None
    raise TypeError(spell(hint))


def spell(hint: Any) -> str:
    """A type in words: 'int', 'a list of int', "one of 'auto', 'user'"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {_list(repr(value) for value in inner)}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(spell(option) for option in inner)
    if origin is tuple:
        variadic = inner[-1] is Ellipsis
        return f"a list of {spell(inner[0])}" if variadic else f"{len(inner)} values"
    return "none" if hint in (None, type(None)) else hint.__name__


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise SettingError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: not TOML ({error})") from error


def _fields(
    cls: type, defaults: Mapping[str, Any] = types.MappingProxyType({})
) -> dict[str, Field]:
    hints = typing.get_type_hints(cls)
    values = {field.name: defaults.get(field.name, field.default) for field in fields(cls)}
    if stray := set(defaults) - set(values):
        raise SettingError(f"defaults for settings that do not exist: {sorted(stray)}")
    return {name: Field(hints[name], value) for name, value in values.items()}


def _parse(group: list[str], known: Mapping[str, Field], owner: str) -> tuple[str, Any]:
    """Name and value of one option with the words after it."""
    import tyro

    option, name = _option(group), _known_as(group, known)
    if name not in known:
        raise unknown(f"{option}: no such setting of {owner}", name, known)
    field = known[name]
    word = make_dataclass("Word", [(name, field.hint, field.default)])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return name, getattr(tyro.cli(word, args=group), name)
    except SystemExit:
        raise SettingError(f"{' '.join(group)}: expected {spell(field.hint)}") from None


def _known_as(group: list[str], known: Mapping[str, Field]) -> str:
    """The setting that an option names: --no-flag is of flag."""
    name = _option(group)[2:].replace("-", "_")
    negated = known.get(name.removeprefix("no_"))
    flag = name not in known and negated and negated.hint is bool
    return name.removeprefix("no_") if flag else name


def _option(group: list[str]) -> str:
    return group[0].partition("=")[0]


def _groups(words: Sequence[str]) -> list[list[str]]:
    """Words -> one list for each option: the option and the values after it."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            groups.append([word])
        elif groups:
            groups[-1].append(word)
        else:
            raise SettingError(f"{word}: a setting is given as --name value")
    return groups


def _once(groups: list[list[str]], known: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a command's options; SettingError where one is there twice."""
    values: dict[str, Any] = {}
    for group in groups:
        name, value = _parse(group, known, "this command")
        if name in values:
            raise SettingError(f"{group[0]}: is there twice; write all its values after one")
        values[name] = value
    return values


def _require(holds: Any, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise SettingError(f"{name} = {value!r}: must be {rule}")


def _first_line(module: types.ModuleType) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
