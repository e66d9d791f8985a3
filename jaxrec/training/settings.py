"""Settings: one flat namespace, defaults <- the method's TRAITS.run <- TOML file <- words.

The settings of the run (`RunConfig`) and of the method (its `Config`) share one list of names,
so a TOML file is flat `key = value` lines and the command line flat `--key value` words. Nothing
is guessed: an unknown name or a value of another type is refused, with the nearest name.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from jaxrec import mesh
from jaxrec.data.reading import Reading
from jaxrec.evaluation.names import METRICS
from jaxrec.methods import method_module
from jaxrec.settings.fields import Field, fields, require, setting, unknown
from jaxrec.settings.toml import read_table
from jaxrec.settings.words import option_groups, parse_option
from jaxrec.types import Reads, SettingError


@dataclass(frozen=True)
class RunConfig(Reading):
    """Settings of a run, whatever the method."""

    data: str = "synthetic"
    """A built-in name, a folder under JAXREC_DATA, or the path of a folder or file."""
    split: Literal["auto", "given", "leave-one-out", "ratio", "time"] = "auto"
    """How train, valid and test are told apart; auto: given if the data has it, else leave-one-out
    where the rows have a time or an order, else ratio."""
    valid: float = setting(0.1, above=0, below=1)
    """Validation part of a ratio or time split; fraction of the interactions."""
    test: float = setting(0.2, above=0, below=1)
    """Test part of a ratio or time split; fraction of the interactions."""
    min_user: int = setting(0, at_least=0)
    """k-core: drop users with fewer interactions."""
    min_item: int = setting(0, at_least=0)
    """k-core: drop items with fewer interactions."""
    partition: Literal["auto", "given", "user", "blocks", "random", "dirichlet"] = "auto"
    """How users become clients; auto: given if the data has it, else blocks."""
    clients: int = setting(100, at_least=1)
    """Number of clients of a blocks, random or dirichlet partition; at most the users."""
    alpha: float = setting(0.5, above=0)
    """Concentration of a dirichlet partition, no unit; smaller is more skewed."""
    text: str = "auto"
    """What makes vectors of the items' texts, for methods that read them: minilm, tfidf, the path
    of a local sentence encoder's folder, or auto: minilm where it is installed, else tfidf."""
    random_positives: float = setting(0.0, at_least=0)
    """Noise, to test robustness: random train rows added to each user's; a fraction of them."""
    seed: int = setting(0, at_least=0)
    """Seed of every random number: split, partition, training, candidates."""
    rounds: int = setting(100, at_least=1)
    """Rounds of training at most; a one-shot method takes one."""
    evaluate_every: int = setting(5, at_least=1)
    """Rounds between two evaluations on the validation split."""
    patience: int = setting(5, at_least=0)
    """Stop after this many evaluations without a better value; 0: never."""
    monitor: str = "NDCG@10"
    """Validation metric that picks the best state; higher is better."""
    ks: tuple[int, ...] = setting((5, 10, 20), at_least=1)
    """List lengths at which metrics are taken; items."""
    candidates: int = setting(0, at_least=0)
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
    cold: int = setting(0, at_least=0)
    """Also report test metrics on items with at most this many train rows, and on those with none,
    1 to 5 and 6 to 20; 0: do not."""
    baselines: tuple[str, ...] = (
        "fedavg", "fedals", "local_only", "als", "itemknn", "popularity"
    )  # fmt: skip
    """Methods trained after this one on the same data, each with its own defaults."""
    mesh: str = ""
    """Devices that the work is divided over, such as clients=8, batch=8 or users=8, whichever the
    method divides; empty: one device."""

    kept_data: float = setting(1.0, at_least=0)
    """Most that the data of a run may take in its folder, where serving reads them once training
    has ended; GB, of 10^9 bytes. 0: keep none, and read the data where they were."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = self.valid + self.test
        if parts >= 1:
            raise SettingError(
                f"valid + test = {parts!r}: must be below 1: something must be left to train on"
            )
        rule = "true where candidates > 0: those are drawn from items the user never had"
        require(self.mask_history or not self.candidates, self, "mask_history", rule)
        rule = "false where candidates = 0, which ranks all items"
        require(self.candidates or not self.listed, self, "listed", rule)
        if self.monitor not in (known := ["MRR", *(f"{m}@{k}" for m in METRICS for k in self.ks)]):
            raise unknown(f"monitor = {self.monitor!r}: is not measured", self.monitor, known)
        for name in self.baselines:
            method_module(name)
        mesh.parse(self.mesh)

    @property
    def unread(self) -> tuple[str, ...]:
        """Columns of the data that neither the split nor the partition looks at."""
        chosen = {"split": self.split, "client": self.partition}
        return tuple(name for name, how in chosen.items() if how not in ("auto", "given"))

    @property
    def client_devices(self) -> int:
        """Devices that the clients are divided over."""
        axis, number = mesh.parse(self.mesh)
        return number if axis == "clients" else 1


TRAINING_LENGTH = ("rounds", "evaluate_every", "patience")
"""Run settings that belong to a method rather than to the data and its evaluation."""


def reads(configs: Mapping[str, Any]) -> Reads:
    """What these methods, each with its config, read together."""
    each = [method_module(name).TRAITS.reads(config) for name, config in configs.items()]
    return Reads(*map(any, zip(*each, strict=True)))


def settings_of(method: str) -> dict[str, Field]:
    """Every setting of a run of `method` by name, defaults as the method wants them."""
    module = method_module(method)
    run, own = fields(RunConfig, module.TRAITS.run), fields(module.Config)
    if clash := sorted(set(run) & set(own)):
        raise SettingError(f"settings of method {method} clash with those of the run: {clash}")
    return run | own


def build(method: str, given: Mapping[str, Any]) -> tuple[RunConfig, Any]:
    """Values by name -> the run's settings and the method's, which check them."""
    values = {name: field.default for name, field in settings_of(method).items()} | dict(given)
    own = method_module(method).Config
    run, config = (cls(**{name: values[name] for name in fields(cls)}) for cls in (RunConfig, own))
    return run, config


def baseline_settings(
    method: str, run: RunConfig, stored: Mapping[str, Any] = MappingProxyType({})
) -> tuple[RunConfig, Any]:
    """Settings of a baseline of `run`: its data and evaluation, and the method's own defaults.

    `stored` are settings that a baseline has begun with; those of the method hold.
    """
    own = (*TRAINING_LENGTH, "baselines")
    shared = {name: getattr(run, name) for name in fields(RunConfig) if name not in own}
    begun = {name: stored[name] for name in fields(method_module(method).Config) if name in stored}
    return build(method, read_values(method, begun) | shared | {"baselines": ()})


def read_settings(
    method: str,
    toml: Path | None = None,
    words: Sequence[str] | Mapping[str, Any] = (),
    *,
    stored: bool = False,
) -> tuple[RunConfig, Any]:
    """Settings of a run: defaults <- the method's TRAITS.run <- `toml` <- `words`.

    `words` are command-line words (`["--rounds", "30"]`) or values by name (`{"rounds": 30}`),
    where `stored`, all those of an earlier run.
    Raises SettingError for what is unknown, of another type, out of range or, unless stored, not
    read by the model that is chosen.
    """
    given = read_toml(toml, method)[1] if toml else {}
    by_name = isinstance(words, Mapping)
    given |= read_values(method, words) if by_name else read_words(method, words)
    run, config = build(method, given)
    if not stored:
        refuse_unread(method, config, given)
    return run, config


def refuse_unread(method: str, config: Any, given: Collection[str]) -> None:
    """SettingError where a setting that was `given` is left unread by what the config chooses."""
    for choice, unread in method_module(method).TRAITS.unread(config).items():
        if stray := [name for name in given if name in unread]:
            left = ", ".join(name for name in fields(type(config)) if name not in unread)
            raise SettingError(
                f"{stray[0]} = {getattr(config, stray[0])!r}: {stray[0]} is not read by {choice} = "
                f"{getattr(config, choice)!r}; its settings are {left}"
            )


def read_toml(path: Path, method: str | None = None) -> tuple[str, dict[str, Any]]:
    """The method a flat TOML file is for (`method = "..."`, else `method`) and its settings.

    A table `[sweep]` is for `jaxrec.sweep` and passed over.
    """
    table = read_table(path)
    table.pop("sweep", None)
    named = table.pop("method", None)
    if method and named and method != named:
        raise SettingError(f"{path}: is for method {named!r}, not {method!r}")
    name = method or named or "fedcia"
    return name, read_values(name, table, f"{path}: ")


def read_sweep_table(path: Path) -> dict[str, Any]:
    """The table `[sweep]` of a TOML file; empty where it has none."""
    table = read_table(path).get("sweep", {})
    if not isinstance(table, dict):
        raise SettingError(f"{path}: sweep = {table!r}: must be a table, [sweep]")
    return table


def read_values(method: str, values: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Values by name, each checked against its setting's type and range.

    Raises SettingError, which `source` begins, for the first that is unknown or refused.
    """
    known = settings_of(method)
    checked = {}
    for given, value in current_names(method, values, source).items():
        name = given.replace("-", "_")
        if name not in known:
            raise unknown(f"{source}{given}: no such setting of {method}", name, known)
        checked[name] = known[name].checked(given, value, source)
    return checked


def read_words(method: str, words: Sequence[str]) -> dict[str, Any]:
    """Command-line words (`--key value ...`, `--flag`, `--no-flag`) -> values by name."""
    known = settings_of(method)
    traits = method_module(method).TRAITS
    for old, new in traits.renamed.items():
        known.setdefault(old, known[new])
    for old in traits.retired:
        known.setdefault(old, Field(str, ""))
    given = dict(parse_option(group, known, method) for group in option_groups(words))
    return read_values(method, given, "--")


def current_names(
    method: str, values: Mapping[str, Any], source: str | None = None
) -> dict[str, Any]:
    """Settings that a stored run or an older TOML file may have, under the names of today.

    With a `source` a warning, which it begins, says what has changed.
    """
    traits = method_module(method).TRAITS
    known = settings_of(method)
    current = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name not in known and name in traits.renamed:
            new = traits.renamed[name]
            if new in values:
                raise SettingError(
                    f"{source or ''}{given}: is called {new} now, and {new} is there too; leave "
                    f"{given} out"
                )
            if source is not None:
                warnings.warn(f"{source}{given}: is called {new} now", stacklevel=3)
            given = new
        elif name not in known and name in traits.retired:
            if source is not None:
                warnings.warn(f"{source}{given}: is read no more; leave it out", stacklevel=3)
            continue
        current[given] = value
    return current
