"""The command: python -m jaxrec.participate DATA --items ITEMS --server HOST:PORT [--out DIR]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec import files
from jaxrec.cli.command import exit_status, print_options, wants_help
from jaxrec.data.reading import Reading
from jaxrec.settings.fields import check, setting
from jaxrec.settings.words import read_options
from jaxrec.training.progress import say
from jaxrec.training.settings import RunConfig
from jaxrec.types import SettingError

if TYPE_CHECKING:
    from jaxrec.deployment.node import Node
    from jaxrec.deployment.own_run import OwnRun

PROGRAM = "python -m jaxrec.participate"
ABOUT = f"""{PROGRAM} DATA --items ITEMS --server HOST:PORT [--option value ...]

Take part in a federation with the rows in DATA, which stay on this machine. The folder of this
client remembers where it stands, and serves its users: python -m jaxrec.recommend DIR."""


@dataclass(frozen=True)
class Options(Reading):
    """Options of a client."""

    items: str = ""
    """The federation's list of items: a table of items, or its URL."""
    items_sha256: str = ""
    """sha256 of that file; a URL needs it."""
    server: str = "127.0.0.1:9092"
    """HOST:PORT of the server."""
    root_certificate: Path | None = None
    """PEM file of who has signed the server's certificate; without it, whom this system trusts."""
    insecure: bool = False
    """Speak to the server without TLS: for trials on one machine."""
    key: Path | None = None
    """PEM file of this client's private key, made where there is none; by default DIR.key, beside
    the folder. NAME.pub beside it is the public half, for the server."""
    out: Path | None = None
    """Folder of this client; by default runs/client-DATA."""
    split: str = RunConfig.split
    """How this client's rows are told apart into train, valid and test, as in jaxrec.train."""
    valid: float = setting(0.1, above=0, below=1)
    """Validation part of a ratio or time split; fraction of the interactions."""
    test: float = setting(0.2, above=0, below=1)
    """Test part of a ratio or time split; fraction of the interactions."""
    seed: int = setting(0, at_least=0)
    """Seed of a ratio split."""
    secure_sum: bool = True
    """Send parts only in secure sums; --no-secure-sum lets the server see them."""
    min_cohort: int = setting(3, at_least=1)
    """Fewest clients that a sum with this client's part may be over."""
    methods: tuple[str, ...] = ()
    """Methods that this client takes part in; none: any."""
    quiet: bool = False
    """Say only what is wrong."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)

    @property
    def run(self) -> RunConfig:
        """These options as settings of a run."""
        known = {field.name for field in fields(RunConfig)}
        return RunConfig(**{n: v for n, v in asdict(self).items() if n in known}, baselines=())


def main(words: Sequence[str]) -> int:
    """Take part as the words say; returns the exit status."""
    return exit_status(lambda: _take_part(words))


def _take_part(words: Sequence[str]) -> None:
    if wants_help(words):
        print_options(Options, f"{PROGRAM} DATA", ABOUT)
    if not words or words[0].startswith("--"):
        raise SettingError(f"no data given: {ABOUT.partition(chr(10))[0]}")
    data, options = words[0], read_options(Options, words[1:])
    if not options.items:
        raise SettingError("items: give the federation's list of items, --items FILE or URL")
    if options.insecure and options.root_certificate:
        raise SettingError("root_certificate: is not read with --insecure; leave one out")
    try:
        from jaxrec.deployment.flower.supernode import take_part
    except ModuleNotFoundError as error:
        raise SettingError(
            f"participate: needs the package {error.name}, which is not installed: "
            "pip install 'jaxrec[flower]'"
        ) from error
    from jaxrec.deployment.catalogue import read_list
    from jaxrec.deployment.node import Limits
    from jaxrec.deployment.own_run import OwnRun

    out = (options.out or Path("runs") / f"client-{Path(data).stem}").resolve()
    shown = not options.quiet
    items = read_list(options.items, options.items_sha256, progress=shown)
    with files.in_use(out):
        run = replace(options.run, data=data)
        own = OwnRun(run, items, out, progress=shown)
        node = own.node(Limits(options.secure_sum, options.min_cohort, options.methods))
        take_part(
            node, options.server, options.key or out.with_name(f"{out.name}.key"),
            root_certificate=options.root_certificate, insecure=options.insecure,
            after=lambda: _keep(own, node), progress=shown,
        )  # fmt: skip
    say("the federation has ended", shown=shown)
    if (out / "config.json").exists():
        say(f"lists for this client's users: python -m jaxrec.recommend {out}", shown=shown)


def _keep(own: OwnRun, node: Node) -> None:
    """Write the client's run; where that fails, the client goes on without."""
    try:
        own.keep(node)
    except Exception as error:  # of orbax and pyarrow, whose types are many
        say(f"warning: this client's run is not written: {error}")
