"""RQFedRec's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxrec.federated.codecs import Codec
from jaxrec.federated.cohort import CohortConfig, check_cohort
from jaxrec.federated.privacy import PrivacyConfig
from jaxrec.settings.fields import check, require, setting
from jaxrec.types import SettingError, Sizes


@dataclass(frozen=True)
class CodesConfig(PrivacyConfig):
    """Settings of codes and of where codebooks start."""

    channels: Literal["auto", "dual", "semantic", "collaborative", "random"] = "auto"
    """Where codes come from: item text, collaborative vectors, both, or (as a control) chance;
    auto: both where the items have texts, else collaborative vectors. Without text codes there is
    no text in scores either."""
    levels: int = setting(3, at_least=1)
    """Q, quantiser levels of a channel."""
    codes: int = setting(256, at_least=1)
    """K, codes a level."""
    width: int = setting(32, at_least=1)
    """D, the width of codes and user vectors (numbers per vector)."""
    start: Literal["warm", "cold"] = "warm"
    """warm: codebooks fitted to the collaborative vectors; cold: random codebooks."""
    window: float = setting(0.0, at_least=0)
    """Rows of a user that count as near in the collaborative vectors, in rows; 0: all of them."""
    shrinkage: float = setting(0.2, at_least=0)
    """Added to each item's count in the collaborative vectors, in mean counts: the co-occurrences
    of rare items say less."""
    passes: int = setting(4, at_least=1)
    """Secure sums [I, D + 1] for the collaborative vectors."""
    sketch_participation: float = setting(0.0, at_least=0, at_most=1)
    """Chance of a client to be in one of those sums, 0 to 1; 0: .2, or as much as brings 1,200
    users and 20 clients into a sum."""
    sketch_bits: Literal[8, 32] = 8
    """Bits of a number in those sums."""
    setup_noise: float = setting(0.1, above=0)
    """Noise of the set-up's sums, as a fraction of a round's, where the run has a budget."""
    text_width: int = setting(128, at_least=1)
    """T, principal components of the text vectors that are quantised and scored with."""
    text_scale: float = setting(1.5, at_least=0)
    """Length of an item's text vector in scores, where collaborative vectors have variance 1;
    0: text is in the codes alone."""

    @property
    def semantic(self) -> bool:
        """Whether there is a channel of text codes."""
        return self.channels in ("auto", "dual", "semantic")

    @property
    def collaborative(self) -> bool:
        """Whether there is a channel of collaborative codes."""
        return self.channels in ("auto", "dual", "collaborative")

    @property
    def text_numbers(self) -> int:
        """T, the numbers of an item's text in scores."""
        return self.text_width if self.semantic and self.text_scale else 0

    @property
    def number_of_channels(self) -> int:
        return self.semantic + self.collaborative or 1

    @property
    def codebook_levels(self) -> int:
        """P, the levels of all channels."""
        return self.number_of_channels * self.levels

    @property
    def needs_vectors(self) -> bool:
        """Whether the set-up makes collaborative vectors."""
        return self.collaborative or self.start == "warm"


@dataclass(frozen=True)
class Config(CohortConfig, CodesConfig):
    """Settings of RQFedRec."""

    model: str = "fold_in"
    """What a client fits to the codebooks: fold_in, a vector for each user by Newton steps on the
    softmax; or a model that Adam trains: mf, lightgcn, mlp, or a Flax module in
    jaxrec.CLIENT_MODELS."""
    model_learning_rate: float = setting(0.02, above=0)
    """Step size of Adam on a client's model."""
    popularity: bool = True
    """Whether scores have the public popularity term."""
    popularity_prior: float = setting(10.0, above=0)
    """Rows that are added to each item's in that term, so that it does not bury new items."""
    recency: float = setting(0.0, at_least=0)
    """A train row with n newer ones of its user counts 1 / (1 + n / recency); 0: all count 1."""
    l2: float = setting(1.0, above=0)
    """L2 penalty that draws a user to the popularity ranking, in interactions."""
    user_steps: int = setting(4, at_least=1)
    """Newton steps of a user vector per round, and as many to serve; or Adam's on a model."""
    damping: float = setting(0.3, above=0, at_most=1)
    """Part of a Newton step that is taken, 0 to 1."""
    codebook_steps: int = setting(1, at_least=1)
    """Gradient steps on a client's codebooks per round; 1: FedSGD, more: FedAvg."""
    codebook_learning_rate: float = setting(0.1, above=0)
    """Step size of those steps, where there are more than one."""
    server_learning_rate: float = setting(0.006, above=0)
    """Step size of the server's Adam."""
    rare_code_steps: float = setting(0.25, at_least=0, at_most=1)
    """A code with a share s of the mean code's train rows takes steps of s to the power of minus
    this, at most three times as large; 0: all codes take the same."""
    start_decay: float = setting(0.2, at_least=0, below=1)
    """Part of the way back to a warm start that codebooks go each round, 0 to 1."""
    next_rows: int = setting(16, at_least=0)
    """The newest rows of a user, at most half of all, that a round predicts from those before them;
    context codebooks learn from it. 0: no context. jaxrec.train sets 0 where the rows have no
    order, and under a budget, whose noise would cover it."""
    context_recency: float = setting(1.0, above=0)
    """A row with n newer ones of its user counts 1 / (1 + n / context_recency) in the context."""
    context_learning_rate: float = setting(0.05, above=0)
    """Step size of the server's Adam on the context codebooks."""
    context_decay: float = setting(0.05, at_least=0, below=1)
    """Part of the way back to zero that context codebooks go each round, 0 to 1."""
    negatives: int = setting(0, at_least=0)
    """Sampled rivals of a client per round; 0: the full catalogue."""
    uplink: Codec = "int8"
    """How clients send codebooks. privacy = plain: each row on a scale of its own, and sign carries
    what it rounded off to the next upload; secure_sum: integers on a public scale of each row, -1,
    0 or 1 for sign."""
    downlink: Literal["float32", "int8"] = "int8"
    """How the server sends codebooks."""
    curriculum: Literal["constant", "linear", "sigmoid", "learned"] = "constant"
    """How the channels' gates move; learned: by gradient."""
    curriculum_rounds: int = setting(50, at_least=1)
    """Rounds that a linear or sigmoid curriculum takes."""
    curriculum_floor: float = setting(0.5, above=0, at_most=1)
    """The lowest gate of a curriculum."""
    semantic_weight: float = setting(1.0, above=0)
    """A constant or first gate of the semantic channel, the collaborative one's being 1."""
    refresh: int = setting(0, at_least=0)
    """Rounds between two refreshes of the collaborative codes; 0: never."""
    drop_loss: float = setting(0.0, at_least=0, below=1)
    """Fraction of its interactions, those of the highest loss, that a client leaves out of its fit
    and of the codebooks' gradient; rounded down."""
    participation: float = setting(0.1, above=0, at_most=1)
    """Chance of a client to be in a round, 0 to 1."""

    def __post_init__(self) -> None:
        check(self)
        check_cohort(self)
        one = self.number_of_channels == 1
        if one and (self.curriculum != "constant" or self.semantic_weight != 1):
            raise SettingError(
                f"channels = {self.channels!r}: one channel has no curriculum; leave curriculum = "
                f"{self.curriculum!r} at 'constant' and semantic_weight = {self.semantic_weight} "
                "at 1"
            )
        for name in ("drop_loss", "negatives") if self.trains else ():
            rule = f"0 for model = {self.model!r}: it is for model = 'fold_in' alone"
            require(not getattr(self, name), self, name, rule)
        rule = f"1 for model = {self.model!r}: clients send one gradient"
        require(not self.trains or self.codebook_steps == 1, self, "codebook_steps", rule)
        rule = f"0 for privacy = {self.privacy!r}: each refresh would spend a part of the budget"
        require(not self.noised or not self.refresh, self, "refresh", rule)
        rule = f"0 for channels = {self.channels!r}, which have no collaborative codes"
        require(self.collaborative or not self.refresh, self, "refresh", rule)

    @property
    def trains(self) -> bool:
        """Whether clients train a model, in place of fitting a vector for each user."""
        return self.model != "fold_in"

    @property
    def unread(self) -> dict[str, tuple[str, ...]]:
        """The settings that a choice leaves unread."""
        sketch = "window", "shrinkage", "passes", "sketch_participation", "sketch_bits"
        texts = () if self.semantic else ("text_width", "text_scale")
        context = "context_recency", "context_learning_rate", "context_decay"
        moves = self.curriculum in ("linear", "sigmoid")
        return {
            "model": ("damping", *context) if self.trains else ("model_learning_rate",),
            "channels": texts if self.needs_vectors else (*texts, *sketch),
            "start": () if self.start == "warm" else ("start_decay",),
            "popularity": () if self.popularity else ("popularity_prior",),
            "curriculum": () if moves else ("curriculum_rounds", "curriculum_floor"),
            "next_rows": () if self.next_rows else context,
            "codebook_steps": () if self.codebook_steps > 1 else ("codebook_learning_rate",),
        }

    @property
    def codebook_shape(self) -> tuple[int, int, int]:
        """[P, K, D] of the codebooks of all channels."""
        return self.codebook_levels, self.codes, self.width

    @property
    def upload_shape(self) -> tuple[int, int, int]:
        """[P, K, D] of an upload: the codebooks' gradient and, below it, the context's."""
        levels, codes, width = self.codebook_shape
        return levels * (2 if self.next_rows else 1), codes, width

    @property
    def keeps_error(self) -> bool:
        """Whether clients keep what their codec rounds off."""
        return self.uplink == "sign" and self.privacy == "plain"

    @property
    def upload_reach(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of what bounds the integers of an upload, leaf by leaf."""
        if self.factored:
            return (), ()
        return (self.upload_shape[:2] if self.uplink != "float32" else (),)

    @property
    def factored(self) -> bool:
        """Whether an upload is the gradient of a table that all clients share.

        Then it is a product of factors: no client needs codebooks of its own.
        """
        one = self.codebook_steps == 1 and not self.negatives and not self.next_rows
        return self.uplink == "float32" and one and not self.trains


def check_items(config: Config, sizes: Sizes) -> None:
    """Rules that join settings to the number of items; raises SettingError naming the value."""
    if config.codes > sizes.items:
        raise SettingError(
            f"codes = {config.codes}: there are {sizes.items:,} items, and more codes than items "
            "quantise nothing; set codes between 1 and that, an eighth of it at most to save bytes"
        )
    rule = f"0 (all) or up to the {sizes.items:,} items"
    require(config.negatives <= sizes.items, config, "negatives", rule)
