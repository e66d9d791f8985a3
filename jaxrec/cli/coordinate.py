"""The command: python -m jaxrec.coordinate METHOD --items ITEMS --clients N [--setting value ...].

Exit status: 0, done; 2, refused or ended by what is wrong, in one line on stderr; 130, interrupted,
after the rounds up to the next evaluation were saved.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from jaxrec import files
from jaxrec.cli.command import (
    exit_status,
    folder_for,
    print_options,
    say_how_to_go_on,
    wants_help,
)
from jaxrec.cli.participate import Options
from jaxrec.cli.train import tell
from jaxrec.deployment.opening import check_terms, open_terms, public_data
from jaxrec.deployment.terms import DEPLOYABLE, Terms
from jaxrec.settings.fields import check, setting
from jaxrec.settings.words import take_options
from jaxrec.training.progress import say
from jaxrec.training.result import Result
from jaxrec.training.settings import (
    RunConfig,
    build,
    read_toml,
    read_values,
    read_words,
    settings_of,
)
from jaxrec.types import SettingError

if TYPE_CHECKING:
    from jaxrec.deployment.flower.superlink import SuperLink

PROGRAM = "python -m jaxrec.coordinate"
ABOUT = f"""{PROGRAM} METHOD --items ITEMS --clients N [--option value ...]

Be the server of a federation whose clients are on machines of their own (python -m
jaxrec.participate). METHOD is one of {", ".join(DEPLOYABLE)}. The settings of the method, and
rounds, evaluate_every, patience, monitor, ks, seed and text, are those of jaxrec.train; all others
are each client's own."""
OURS = ("rounds", "evaluate_every", "patience", "monitor", "ks", "seed", "text")
RECORD = "federation.json"  # beside a run's other files: the terms, and these options
KINDS: files.Kinds = {
    "method": str, "settings": dict, "terms": dict, "participation": files.NUMBER, "server": dict,
}  # fmt: skip
ITEMS = "items.parquet"  # the list of items
MEMBERS = "members.json"
SAVED = "checkpoint/index.json"  # there once a run can go on
POLL = 0.2  # seconds between two looks for clients


@dataclass(frozen=True)
class Server:
    """Options of a server."""

    items: str = ""
    """The federation's list of items: a table of items, or its URL."""
    items_sha256: str = ""
    """sha256 of that file; a URL needs it."""
    clients: int = setting(3, at_least=1)
    """Places for clients."""
    start_with: int = setting(0, at_least=0)
    """Clients to wait for before the first round; 0: all places, or all who had joined a run that
    is resumed. With fewer, give --users."""
    users: int = setting(0, at_least=0)
    """Users of all clients together, at most; 0: those of the clients that are there at first."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: every one of this machine."""
    port: int = setting(9092, at_least=1, at_most=65535)
    """Port to listen on."""
    certificate: Path | None = None
    """PEM file of this server's certificate."""
    certificate_key: Path | None = None
    """PEM file of that certificate's private key."""
    insecure: bool = False
    """Listen without TLS: for trials on one machine."""
    keys: Path | None = None
    """Folder of the admitted clients' public keys, NAME.pub each; without it, every client is."""
    timeout: float = setting(60.0, above=0)
    """Seconds that a client has for each reply; the round goes on without one that takes longer."""
    tries: int = setting(3, at_least=1)
    """How often a round may fail, for too few clients, before the run ends."""
    wait: float = setting(10.0, at_least=0)
    """Seconds before the next try."""

    def __post_init__(self) -> None:
        check(self)
        if bool(self.certificate) != bool(self.certificate_key):
            raise SettingError("certificate and certificate_key: give both")
        if self.insecure and (self.certificate or self.keys):
            raise SettingError("insecure: goes with neither certificate nor keys; leave it out")
        if self.start_with > self.clients:
            raise SettingError(f"start_with = {self.start_with}: there are {self.clients} places")
        if 0 < self.start_with < self.clients and not self.users:
            raise SettingError(
                f"start_with = {self.start_with}: clients that come later need places for their "
                "users; say with --users how many all clients have together, at most"
            )


@dataclass(frozen=True)
class Run:
    """Files of the run, and what it shows."""

    config: Path | None = None
    """TOML file of settings, one key = value a line; words win over it."""
    out: Path | None = None
    """Folder to write the run to; by default runs/METHOD-federation-TIME."""
    resume: Path | None = None
    """Folder of a run to continue, with its options; those given anew win."""
    quiet: bool = False
    """No line for each evaluation; what is wrong is still said."""
    json: bool = False
    """Print the final values as one line of JSON in place of tables."""


def main(words: Sequence[str]) -> int:
    """Serve as the words say and print the table of results; returns the exit status."""
    begun: list[Path] = []
    return exit_status(
        lambda: _coordinate(words, begun), lambda: say_how_to_go_on(PROGRAM, begun, SAVED)
    )


def _coordinate(words: Sequence[str], begun: list[Path]) -> None:
    named = words and not words[0].startswith("-")
    method, words = (words[0], words[1:]) if named else (None, words)
    if wants_help(words):
        print_options(Server, f"{PROGRAM} METHOD", ABOUT)
    try:
        from jaxrec.deployment.flower.superlink import Certificate, SuperLink
    except ModuleNotFoundError as error:
        raise SettingError(
            f"coordinate: needs the package {error.name}, which is not installed: "
            "pip install 'jaxrec[flower]'"
        ) from error
    shown, words = take_options(Run, words)
    before = _record_of(shown, method, words) if shown.resume else {}
    server, words = take_options(Server, [*_words_of(before.get("server", {}), words), *words])
    if not (server.insecure or server.certificate):
        raise SettingError(
            "certificate: none is given; give --certificate and --certificate-key, or --insecure "
            "for a trial on one machine"
        )
    if shown.out and any((shown.out / name).exists() for name in (RECORD, "config.json")):
        raise SettingError(f"out = '{shown.out}': holds a run; resume it, or choose another folder")
    if not (before or server.items):
        raise SettingError("items: give the federation's list of items, --items FILE or URL")
    plan = _resumed(before, words) if before else _planned(method, shown.config, words)
    certificate = None
    if server.certificate and server.certificate_key:
        certificate = Certificate(server.certificate, server.certificate_key)
    with (
        folder_for(f"{plan.method}-federation", shown.resume or shown.out) as out,
        SuperLink(
            server.host, server.port, certificate, server.keys, timeout=server.timeout
        ) as link,
    ):
        begun.append(out)
        result = _trained(plan, server, link, out, progress=not shown.quiet)
    tell(plan.method, result, out, json=shown.json)


class Plan(NamedTuple):
    """What is to be trained."""

    method: str
    run: RunConfig
    config: Any
    participation: float = 1.0  # the share of the clients in each round
    terms: Terms | None = None  # of a run that is resumed
    members: int = 0  # that have joined it


def _planned(method: str | None, config: Path | None, words: Sequence[str]) -> Plan:
    """The settings of a new run; those of data, in a TOML file, are the clients' own."""
    given: dict[str, Any] = {}
    if config:
        method, given = read_toml(config, method)
    if method is None:
        raise SettingError(f"no method given: one of {', '.join(DEPLOYABLE)}")
    own = {field.name for field in fields(RunConfig)} - {*OURS}
    if passed := sorted(own & set(given)):
        say(f"{config}: each client has its own {', '.join(passed)}")
    worded = read_words(method, words)
    if stray := sorted(own & set(worded)):
        theirs = {field.name for field in fields(Options)}
        told = "each client has its own; give it to python -m jaxrec.participate"
        none = "is no setting of a federation of real machines; leave it out"
        raise SettingError(f"{stray[0]}: {told if stray[0] in theirs else none}")
    given = {name: value for name, value in given.items() if name not in own} | worded
    share = given.pop("participation", 1.0)  # whom the server draws, and no method simulates
    if share < 1 and method == "fedcia":
        raise SettingError(
            f"participation = {share!r}: every client is in each sum of fedcia; leave it out"
        )
    all_there = {"participation": 1.0} if "participation" in settings_of(method) else {}
    run, made = build(method, given | all_there | {"data": "federation", "baselines": ()})
    check_terms(method, made)
    return Plan(method, run, made, share)


def _record_of(shown: Run, method: str | None, words: Sequence[str]) -> dict[str, Any]:
    """What a run to be resumed has recorded; SettingError where it cannot be."""
    run = shown.resume
    assert run is not None
    record = files.read_json(run / RECORD, KINDS)
    if not (run / SAVED).exists():
        raise SettingError(
            f"{run}: ended before anything was saved, and clients begin a set-up once; begin "
            "another run, with another --seed"
        )
    given = {word.partition("=")[0].removeprefix("--") for word in words if word[:2] == "--"}
    fixed = sorted(given & {"items", "items-sha256", "clients", "users"})
    fixed += ["config"] * bool(shown.config) + ["out"] * bool(shown.out)
    if fixed or method not in (None, record["method"]):
        raise SettingError(f"{fixed[0] if fixed else method}: {run} goes on as it was begun")
    if (run / "result.json").exists() and not given & {"rounds", "patience"}:
        raise SettingError(f"{run}: has ended, with result.json; give --rounds to go on")
    if given & (tls := {"insecure", "certificate", "certificate-key", "keys"}):
        stored = record["server"]
        record["server"] = {n: v for n, v in stored.items() if n.replace("_", "-") not in tls}
    members = files.read_json(run / MEMBERS, {"members": dict})["members"]
    return record | {"members": len(members)}


def _resumed(before: dict[str, Any], words: Sequence[str]) -> Plan:
    """The settings of a run that goes on; words may change how long."""
    method, terms = before["method"], Terms.from_json(json.dumps(before["terms"]))
    worded = read_words(method, words)
    if stray := sorted(set(worded) - {"rounds", "patience"}):
        raise SettingError(
            f"{stray[0]}: clients have agreed to other terms; a resumed run may change only rounds "
            "and patience"
        )
    run, config = build(method, read_values(method, before["settings"]) | worded)
    return Plan(method, run, config, before["participation"], terms, before["members"])


def _trained(plan: Plan, server: Server, link: SuperLink, out: Path, *, progress: bool) -> Result:
    """Wait for clients, agree on terms and train."""
    from jaxrec.deployment.catalogue import read_list
    from jaxrec.deployment.coordinator import Coordinator
    from jaxrec.deployment.run import train_together

    if plan.terms:
        items = pd.read_parquet(out / ITEMS)
    else:
        items = read_list(server.items, server.items_sha256, progress=progress)
    number = server.start_with or (plan.members if plan.terms else server.clients)
    _wait(link, number, server, progress=progress)
    terms = plan.terms or open_terms(
        plan.method, plan.run, plan.config, items, link.ask, link.names(),
        clients=server.clients, users=server.users, progress=progress,
    )  # fmt: skip
    settings = asdict(plan.run) | asdict(plan.config)
    record = {"method": plan.method, "settings": settings, "terms": asdict(terms)}
    record["participation"] = plan.participation
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / RECORD, record | {"server": _stored(replace(server, users=terms.users))})
    files.write_atomic(out / ITEMS, items.to_parquet)
    coordinator = Coordinator(terms, public_data(terms, items), link.ask)
    result = train_together(
        coordinator, link.names, plan.run, out, items=items, participation=plan.participation,
        tries=server.tries, wait=server.wait, progress=progress,
    )  # fmt: skip
    coordinator.end(link.names())
    up, down = link.traffic
    say(f"on the wire, with Flower's framing: {up:,} bytes up, {down:,} down", shown=progress)
    return result


def _wait(link: SuperLink, number: int, server: Server, *, progress: bool) -> None:
    """Wait until so many clients are connected."""
    scheme = "http" if server.insecure else "https"
    host = f"[{server.host}]" if ":" in server.host else server.host
    say(f"listening on {scheme}://{host}:{server.port}", shown=progress)
    before = -1
    while (there := len(link.names())) < number:
        if there != before:
            say(f"{there} of {number} clients are connected", shown=progress)
        before = there
        time.sleep(POLL)
    say(f"{there} clients are connected: {', '.join(link.names())}", shown=progress)


def _stored(server: Server) -> dict[str, Any]:
    """The options as JSON has them; files by their whole path."""
    plain = lambda value: str(value.absolute()) if isinstance(value, Path) else value
    return {name: plain(value) for name, value in asdict(server).items()}


def _words_of(stored: dict[str, Any], words: Sequence[str]) -> list[str]:
    """Stored options as words, without those that words give anew."""
    given = {word.partition("=")[0] for word in words}
    anew = lambda name: bool({f"--{name}", f"--no-{name}"} & given)
    found = []
    for name, value in stored.items():
        if value is None or value is False or value == "" or anew(name.replace("_", "-")):
            continue
        found += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return found
