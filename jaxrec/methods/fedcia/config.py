"""FedCIA's settings, and the models that they deal out to clients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxrec.federated import local
from jaxrec.federated.cohort import CohortConfig, check_cohort
from jaxrec.federated.privacy import PrivacyConfig
from jaxrec.models import kinds
from jaxrec.models.clients import ClientModel
from jaxrec.ops.linalg import MOST_ITEMS
from jaxrec.settings.fields import check, fields, require, setting, unknown
from jaxrec.types import SettingError, Sizes

ONE_SHOT = ("gfcf", "ease", "gram")  # models that have nothing to train
DENSE_LIMIT = MOST_ITEMS


@dataclass(frozen=True)
class LinearConfig(PrivacyConfig):
    """Settings of the parameter-free models: gfcf, ease and gram."""

    model: str = "gfcf"
    """gfcf, ease or gram."""
    form: Literal["lossless", "paper"] = "lossless"
    """lossless: secure-summed degrees and Gram, equal to the centralised model; paper: the mean of
    similarities that each client normalises by itself (gfcf only)."""
    singular_vectors: int = setting(32, at_least=1)
    """k, singular vectors in GF-CF's low-pass filter."""
    low_pass: float = setting(0.3)
    """Weight of GF-CF's low-pass filter."""
    global_weight: float = setting(60.0)
    """Weight of the server's similarity beside the client's own, form = paper."""
    ridge: float = setting(500.0, above=0)
    """EASE's L2 penalty, in interactions."""
    sketch: int = setting(0, at_least=0)
    """r, what is kept of the Gram I x I: eigenpairs for gfcf, columns of popular items for ease; 0:
    all of it. The more the closer."""
    passes: int = setting(4, at_least=1)
    """Secure sums made for a sketch of gfcf."""
    basis: Literal["both", "text", "items"] = "both"
    """What directions gram tells a user's row in: public texts (as far as their vectors go, then
    items), popular items' own, or a third of the one and two of the other."""
    directions: int = setting(0, at_least=0)
    """r, number of gram's directions beside popularity; 0: as many as noise leaves useful."""
    popularity_share: float = setting(0.1, above=0, below=1)
    """Share of gram's budget that goes to the items' popularity, which its directions need."""
    recency: float = setting(0.0, at_least=0)
    """A train row with n newer ones of its user counts 1 / (1 + n / recency) when a client serves;
    0: all count 1. With loss = softmax it counts so in training."""
    transitions: float = setting(0.0, at_least=0)
    """Weight of what a client adds to its users' scores by which items of its own users came after
    which; it stays at home. 0: nothing. Try 1 with ease, 4 with mf."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_linear(self)


@dataclass(frozen=True)
class Config(LinearConfig, CohortConfig, local.ModelConfig):
    """Settings of FedCIA."""

    model: str = "mf"
    """The clients' model: mf, lightgcn, mlp, gfcf, ease, gram, or a Flax module in
    jaxrec.CLIENT_MODELS. A list such as mf:64,lightgcn:64,mlp:32 deals models and widths out to the
    clients in turn; they share nothing but the similarity."""
    width: int = setting(32, at_least=1)
    """D, the width of user and item vectors (numbers per vector)."""
    training: Literal["auto", "newton", "steps"] = "auto"
    """newton: clients fit their users in closed form and say how similarities should change, and
    the server takes a Newton step; steps: clients align, take gradient steps and say what their
    similarities are (the paper); auto: newton, unless a setting of steps alone is changed."""
    layers: int = setting(1, at_least=1)
    """LightGCN's layers."""
    negative_weight: float = setting(0.0, at_least=0, at_most=1)
    """Weight of an unobserved entry in the square loss (an interaction weighs 1); 0: 0.4 where
    training = newton, 0.1 in steps."""
    l2_user_rows: float = setting(100.0, above=0)
    """Where training = newton, a user of n train rows has the penalty l2_user (1 + n / this)."""
    l2_item: float = setting(0.0, at_least=0)
    """L2 penalty on the item table, in interactions: of all clients where training = newton, of
    each in steps; 0: 35 and 0.3; a tiny number for none."""
    local_steps: int = setting(5, at_least=1)
    """Gradient steps a client takes per round, each over all of its interactions."""
    rank: int = setting(64, at_least=1)
    """R, eigenpairs of the server's similarity that are kept and sent; with training = newton they
    are as many as `width`."""
    align: Literal["procrustes", "gradient"] = "procrustes"
    """procrustes: towards the nearest exact minimiser; gradient: the paper's descent to it."""
    align_step: float = setting(1.0, above=0, at_most=1)
    """How far a procrustes alignment goes, a fraction of the way."""
    align_steps: int = setting(100, at_least=0)
    """Gradient steps of an alignment."""
    align_rate: float = setting(0.1, at_least=0)
    """Step size of the gradient steps."""
    align_decay: float = setting(0.0, at_least=0)
    """L2 penalty during the alignment."""
    server_iterations: int = setting(2, at_least=0)
    """Subspace iterations per round, started from the last round's eigenvectors."""
    upload: Literal["sketch", "factor"] = "sketch"
    """sketch: A_c times the server's eigenvectors, which adds up; factor: the rotated item table,
    from which the server reads what the client holds (privacy = plain alone)."""
    tables: Literal["kept", "rebuilt"] = "kept"
    """kept: a client keeps its item table between rounds; rebuilt: it starts from S."""
    weighting: Literal["uniform", "interactions"] = "uniform"
    """A client's weight in the mean: the same for all (the paper), or its train interactions."""
    noise: float = setting(0.0, at_least=0)
    """Scale of the paper's Laplace noise on every entry of A_c; promises no privacy."""

    def __post_init__(self) -> None:
        check(self)
        check_cohort(self)
        if self.model in ONE_SHOT:
            check_linear(self)
            return
        if not self.newton:
            local.check_recency(self)
            rule = "0 for training = 'steps', whose clients add nothing when they serve"
            require(not self.transitions, self, "transitions", rule)
        models = client_models(self)
        if self.tables == "rebuilt" and len({model.width for model in models}) > 1:
            raise SettingError("tables = 'rebuilt': needs models of one width; use tables = 'kept'")
        rule = "'procrustes' for an item encoder: it moves towards the nearest minimiser"
        require(self.align == "procrustes" or models[0].table, self, "align", rule)
        rule = "'kept' for an item encoder: it cannot be made of a similarity at once"
        require(self.tables == "kept" or models[0].table, self, "tables", rule)
        rule = f"'sketch' for privacy = {self.privacy!r}: factors do not add up"
        require(self.privacy == "plain" or self.upload == "sketch", self, "upload", rule)
        rule = "0 for upload = 'sketch': the paper adds it to whole similarities"
        require(self.upload != "sketch" or not self.noise, self, "noise", rule)

    @property
    def newton(self) -> bool:
        """Whether the server takes Newton steps; SettingError where it is asked to and cannot."""
        name, _, width = self.model.partition(":")
        needs = {
            "model": (name == "mf" and (not width or width.isdigit()), "'mf'"),
            "privacy": (not self.noised, "'plain' or 'secure_sum'"),
            "l2_user": (self.l2_user > 0, "above 0"),
        }
        for each in CHOOSING:
            needs[each] = getattr(self, each) == default(each), repr(default(each))
        for each, (holds, rule) in needs.items() if self.training == "newton" else ():
            require(holds, self, each, f"{rule} for training = 'newton'")
        asked = any(getattr(self, each) != default(each) for each in STEPS)
        return self.training == "newton" or (
            self.training == "auto" and all(holds for holds, _ in needs.values()) and not asked
        )


def default(name: str) -> Any:
    """The default of one of FedCIA's settings."""
    return Config.__dataclass_fields__[name].default


def settled(config: Config) -> Config:
    """The settings with what the way of training leaves open."""
    weight, l2_item = (0.4, 35.0) if config.newton else (0.1, 0.3)
    return replace(
        config,
        negative_weight=config.negative_weight or weight,
        l2_item=config.l2_item or l2_item,
    )


def unread(config: Config) -> dict[str, tuple[str, ...]]:
    """The settings that a choice leaves unread."""
    common = {"model", "recency", "transitions", *fields(PrivacyConfig)}
    of_linear = tuple(name for name in fields(LinearConfig) if name not in common)
    if config.model in ONE_SHOT:
        reads = OF_ONE_SHOT[config.model]
        found: dict[str, tuple[str, ...]] = {}
        found["model"] = TRAINED + tuple(name for name in of_linear if name not in reads)
        if config.model == "gram":
            found["model"] += ("recency", "transitions")
        if config.model == "gfcf":
            found["form"] = ("passes",) if config.form == "paper" else ("global_weight",)
        return found
    models = [part.strip() for part in config.model.split(",")]
    widths = ("width",) if all(":" in model for model in models) else ()
    layers = () if any(model.startswith("lightgcn") for model in models) else ("layers",)
    gradient = "align_steps", "align_rate", "align_decay"
    if config.newton:
        return {
            "model": (*of_linear, *widths, "layers", *local.OF_MODULES),
            "training": STEPS if config.training == "newton" else (),
        }
    return {
        "training": ("l2_user_rows",),
        "model": (*of_linear, *widths, *layers, *local.unread_by_plain(config, models)),
        "align": gradient if config.align == "procrustes" else ("align_step",),
        "upload": ("server_iterations",) if config.upload == "sketch" else (),
        "loss": local.unread_by_loss(config.loss),
    }


OF_ONE_SHOT = {  # what each reads of the settings that only such models have
    "gfcf": ("form", "singular_vectors", "low_pass", "global_weight", "sketch", "passes"),
    "ease": ("form", "ridge", "sketch"),
    "gram": ("basis", "directions", "popularity_share"),
}
STEPS = (  # what only clients read that take gradient steps
    "learning_rate", "local_steps", "rank", "align", "align_step", "align_steps", "align_rate",
    "align_decay", "server_iterations", "tables", "weighting",
)  # fmt: skip
CHOOSING = "loss", "upload", "item_encoder", "noise", "clip"  # these need steps where changed
TRAINED = (  # what only models read that are trained in rounds
    "training", "width", "layers", "loss", "negative_weight", "l2_user", "l2_user_rows", "l2_item",
    *STEPS, "upload", "item_encoder", "noise", *local.OF_MODULES, "init_scale", "participation",
    "dropped", "block", "aggregate", "malicious", "clip", "clip_quantile",
)  # fmt: skip


def client_models(config: Config) -> tuple[ClientModel, ...]:
    """The models of `config.model`; raises SettingError on what it does not know."""
    models, parts = [], config.model.split(",")
    for part in parts:
        name, _, width = part.strip().partition(":")
        if width and not (width.isdigit() and int(width)):
            raise SettingError(
                f"model = {config.model!r}: {width!r} is no width; several models are written "
                "mf:64,lightgcn:64,mlp:32"
            )
        if len(parts) > 1 and name in ONE_SHOT:
            raise SettingError(
                f"model = {config.model!r}: {name} has nothing to train, so it is no part of a "
                "mixed federation; choose among mf, lightgcn, mlp"
            )
        if name not in kinds.known() and len(parts) == 1:
            names = (*kinds.known(), *ONE_SHOT)
            raise unknown(f"no model {name!r} among {', '.join(names)}", name, names)
        models.append(
            kinds.client_model(
                name,
                int(width or config.width),
                scale=config.init_scale,
                layers=config.layers,
                encoder=config.item_encoder,
            )
        )
    local.check_models(config, tuple(models))
    return tuple(models)


def check_linear(config: LinearConfig) -> None:
    """Rules that join settings of the parameter-free models; raises SettingError."""
    if config.form == "paper":
        rule = "'lossless' for model = 'ease': EASE has no other form"
        require(config.model != "ease", config, "form", rule)
        require(not config.sketch, config, "sketch", "0 for form = 'paper', which has no sketch")
        rule = "'plain' for form = 'paper', whose clients send whole matrices"
        require(config.privacy == "plain", config, "privacy", rule)
        for name in ("recency", "transitions"):
            rule = "0 for form = 'paper', which serves 0/1 rows"
            require(not getattr(config, name), config, name, rule)
    if config.sketch and config.model == "gfcf":
        require(config.passes >= 2, config, "passes", "at least 2 for a sketch")
        rule = f"at least singular_vectors = {config.singular_vectors}"
        require(config.sketch >= config.singular_vectors, config, "sketch", rule)


def check_items(config: LinearConfig, sizes: Sizes) -> None:
    """Rules that join settings of the parameter-free models to the catalogue's size.

    Raises SettingError where a whole I x I matrix is too large, or more vectors than items are
    asked for.
    """
    if not config.sketch and sizes.items > DENSE_LIMIT:
        raise SettingError(
            f"{sizes.items:,} items: a whole I x I matrix takes "
            f"{4e-9 * sizes.items**2:.1f} GB; set sketch = 512 (form = 'lossless')"
        )
    for name in ("singular_vectors", "sketch") if config.model == "gfcf" else ("sketch",):
        rule = f"at most {sizes.items}, the number of items"
        require(getattr(config, name) <= sizes.items, config, name, rule)


def check_gram(config: LinearConfig, sizes: Sizes) -> None:
    """Rules that join gram's settings to the federation's sizes; raises SettingError."""
    most = min(sizes.items - 1, DENSE_LIMIT**2 // sizes.items)
    rule = f"at most {most:,} with {sizes.items:,} items"
    require(config.directions <= most, config, "directions", rule)
    one = config.privacy_unit == "user" or sizes.clients >= sizes.users
    rule = "'user' where clients have several users: each user's part is bounded, not a client's"
    require(one or not config.noised, config, "privacy_unit", rule)
