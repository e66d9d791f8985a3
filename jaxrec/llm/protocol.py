"""What a language model is to jaxrec: a function from a list of prompts to a list of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple


class Prompt(NamedTuple):
    """What to ask. The same prompt with another seed is another question."""

    system: str
    user: str
    seed: int = 0
    max_tokens: int = 512


class Answer(NamedTuple):
    """What came back: text, or None and why there is none."""

    text: str | None
    failure: str = ""


Complete = Callable[[Sequence[Prompt]], list[Answer]]
Keep = Callable[[Prompt, str], None]  # writes an answer down as soon as it is there


@dataclass
class Usage:
    """What has been asked so far. Tokens are as the server counted them, else characters / 4."""

    calls: int = 0  # that were paid for
    cached: int = 0  # answered from the disk
    retries: int = 0  # tries after the first one of a call
    failures: int = 0  # calls that the server refused for good
    cut: int = 0  # paid for, but at their limit before the answer was whole: not used, not kept
    empty: int = 0  # paid for, but without text or held back by a filter: not used, not kept
    prompt_tokens: int = 0  # of the calls paid for
    answer_tokens: int = 0

    @property
    def usable(self) -> int:
        """Answers that could be used, those on the disk among them."""
        return self.calls + self.cached - self.cut - self.empty

    def values(self) -> dict[str, int]:
        """By name."""
        return asdict(self)
