"""Settings of LLMD4Rec, and what follows from them: which model learns and which one teaches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxrec.methods import sequential
from jaxrec.settings.fields import fields, require, setting


@dataclass(frozen=True)
class LanguageConfig:
    """Settings of the language model L."""

    llm: str = "minilm"
    """L's layers: minilm, the folder of a causal language model, or random (tests only)."""
    llm_layers: int = setting(2, at_least=0)
    """Layers of an encoder that L takes, from the bottom; 0: all."""
    llm_width: int = setting(64, at_least=1)
    """Width of random layers; others have their own."""
    tune: Literal["lora", "full", "frozen"] = "lora"
    """What is trained of L's layers: low-rank pairs beside them, all, or nothing."""
    lora_rank: int = setting(16, at_least=1)
    """Rank of the pairs."""
    lora_alpha: float = setting(16.0, above=0)
    """Scale of the pairs, divided by their rank."""
    texts: bool = True
    """Whether L reads item texts beside C's vectors, and its output table begins as they are."""
    llm_dropout: float = setting(0.2, at_least=0, below=1)
    """Share of L's inputs and outputs set to 0 while training."""
    llm_learning_rate: float = setting(1e-3, above=0)
    """Learning rate of L's AdamW."""
    llm_weight_decay: float = setting(0.0, at_least=0)
    """Weight decay of L's AdamW, decoupled."""


@dataclass(frozen=True)
class Config(LanguageConfig, sequential.Config):
    """Settings of LLMD4Rec; one round is one epoch of one of the two models.

    C's are those of `sequential`; `length` and `batch` hold for both.
    """

    mode: Literal["mutual", "crm_to_llm", "llm_to_crm", "none"] = "mutual"
    """Who learns from whom; what the model that serves does not need is left out."""
    serve: Literal["crm", "llm"] = "crm"
    """The model that scores: C or L."""
    pretrain: int = setting(9, at_least=0)
    """Epochs of C alone, before all others."""
    loops: int = setting(1, at_least=1)
    """Times that L and then C learn; without an up step, L learns on and on."""
    epochs_down: int = setting(5, at_least=1)
    """Epochs of L in a loop."""
    epochs_up: int = setting(3, at_least=1)
    """Epochs of C in a loop."""
    temperature_down: float = setting(2.0, above=0)
    """T of the softmaxes that L learns from."""
    temperature_up: float = setting(1.0, above=0)
    """T of the softmaxes that C learns from."""
    dropout_up: float = setting(0.15, at_least=0, below=1)
    """`dropout` of C in an up step, where L's softmax keeps C from learning rows by heart."""
    lambda_down: float = setting(1.0, at_least=0)
    """Factor of what L learns from C."""
    lambda_up: float = setting(4.0, at_least=0)
    """Factor of what C learns from L."""
    weights: Literal["online", "per_round", "none"] = "online"
    """Weights by ranks: of the pass that trains, of the models at the start of a phase, or 1."""
    inject: Literal["update", "fixed"] = "update"
    """C's item table that L reads: the newest at each down step, or the first one."""
    reset: bool = True
    """Whether an optimizer begins anew with each phase."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.language_teaches:
            rule = "softmax, beside which C learns from L; or set mode to crm_to_llm or none"
            require(self.loss == "softmax", self, "loss", rule)

    @property
    def language_teaches(self) -> bool:
        """Whether C has phases in which it learns beside L."""
        return self.mode in ("mutual", "llm_to_crm")

    @property
    def language_learns(self) -> bool:
        """Whether L is trained, for the sake of the model that serves."""
        return self.language_teaches or self.serve == "llm"

    @property
    def unread(self) -> dict[str, tuple[str, ...]]:
        """The settings that a choice leaves unread."""
        down, up = ("temperature_down", "lambda_down"), ("temperature_up", "lambda_up")
        up += ("dropout_up",)
        if self.language_learns:
            untaught = () if self.share_down else down
            untaught += () if self.language_teaches else up
            untaught += ("weights",) if self.mode == "none" else ()
        else:
            phases = "pretrain", "loops", "epochs_down", "epochs_up", "weights", "inject", "reset"
            untaught = (*fields(LanguageConfig), *phases, *down, *up)
        return {
            "mode": untaught,
            "model": sequential.ALONE[self.model],
            "tune": () if self.tune == "lora" else ("lora_rank", "lora_alpha"),
            "llm": () if self.llm == "random" else ("llm_width",),
        }

    @property
    def share_down(self) -> float:
        """Factor of what L learns from C, 0 where C does not teach."""
        return self.lambda_down * (self.mode in ("mutual", "crm_to_llm"))

    @property
    def share_up(self) -> float:
        """Factor of what C learns from L, 0 where L does not teach."""
        return self.lambda_up * self.language_teaches

    @property
    def reads_text(self) -> bool:
        """Whether L reads the items' texts."""
        return self.texts and self.language_learns

    @property
    def random_language(self) -> bool:
        """Whether a run trains layers that were never pretrained, which tests no more than code."""
        return self.llm == "random" and self.language_learns
