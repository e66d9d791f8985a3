"""Answers that are of no use: each says why, and where there are too many of them the run stops."""

from __future__ import annotations

from collections import Counter
from warnings import warn

from jaxrec.llm.protocol import Answer, Usage
from jaxrec.types import LLMError

EMPTY = "empty: if the model thinks first, allow longer answers, as with spare_tokens"
FIRST = 8  # answers that are too many if none is usable
SOME = 32  # unusable answers from which on their share says something
_SHOWN = 3  # reasons in a message


def cut_at(limit: int) -> str:
    """Why an answer that reached its limit is of no use."""
    return f"cut at max_tokens = {limit}: allow longer answers, as with spare_tokens"


def without_use(usage: Usage, whose: str, problem: str) -> Answer:
    """An Answer that says why there is none, for a call that `usage` has counted.

    Raises LLMError where none of the first 8 answers of `whose` model is usable, and none kept
    from before: what went wrong once would go wrong for every call, and be paid for.
    """
    calls = usage.calls + usage.failures
    if not usage.usable and calls >= FIRST:
        raise LLMError(
            f"{whose}: {calls} of {calls} calls refused or unusable, the last: {problem}. "
            "Change the setting that it speaks of, or ask another model"
        )
    return Answer(None, problem)


class Tally:
    """The answers to a list of calls, and how many of them are of no use, by reason.

    `limit` is the share that may be: `check` raises LLMError above it, once there are 32 of them,
    or 8 and no other; 1 lets all pass. `close` warns.
    """

    def __init__(self, limit: float):
        self.limit, self.calls = limit, 0
        self.refused: Counter[str] = Counter()
        self.unfit = 0

    def note(self, answer: Answer, *, fits: bool) -> None:
        """Count an answer, which follows the format that was asked for or does not."""
        self.calls += 1
        if answer.text is None:
            self.refused[answer.failure or "no reason given"] += 1
        else:
            self.unfit += not fits

    @property
    def unusable(self) -> int:
        """Answers that there are not, or that do not follow the format."""
        return self.refused.total() + self.unfit

    def check(self) -> None:
        """Stop, with an LLMError, where too many answers are of no use."""
        enough = self.unusable >= SOME or self.unusable == self.calls >= FIRST
        if enough and self.unusable > self.limit * self.calls:
            raise LLMError(
                f"{self}. That is more than unusable_limit = {self.limit:g} of them: change the "
                "setting that the reason speaks of, ask another model, or raise unusable_limit"
            )

    def close(self) -> None:
        """Warn of calls without an answer, and of too many unusable answers among few."""
        if self.refused or self.unusable > self.limit * self.calls:
            warn(str(self), stacklevel=2)

    def __str__(self) -> str:
        told = [f"{number} {why}" for why, number in self.refused.most_common(_SHOWN)]
        told += [f"{self.unfit} not in the format asked for"] if self.unfit else []
        return f"{self.unusable} of {self.calls} calls refused or unusable: {'; '.join(told)}"
