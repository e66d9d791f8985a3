"""What a run with a language model will take, before it starts."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple


class Estimate(NamedTuple):
    """What a run will take, before it starts."""

    calls: int
    prompt_tokens: int
    answer_tokens: int
    seconds: float
    cost: float | None  # None where no price is known


def estimate(
    calls: int,
    prompt_tokens: int,
    answer_tokens: int,
    *,
    rounds: int = 1,
    concurrency: int = 1,
    answer_seconds: float = 1.0,
    prices: tuple[float, float] = (0.0, 0.0),
) -> Estimate:
    """Calls, tokens, time and cost of a run.

    Args:
      calls: in all.
      prompt_tokens: in all.
      answer_tokens: in all.
      rounds: lists of calls made one after another; none takes less time than one answer.
      concurrency: calls under way at once.
      answer_seconds: for one answer.
      prices: of a million prompt tokens and of a million answer tokens.
    """
    seconds = max(rounds, calls / concurrency) * answer_seconds
    cost = (prices[0] * prompt_tokens + prices[1] * answer_tokens) / 1e6
    return Estimate(calls, prompt_tokens, answer_tokens, seconds, cost if any(prices) else None)


def tell(took: Estimate) -> str:
    """An estimate in words."""
    cost = "" if took.cost is None else f", cost {took.cost:,.2f}"
    return (
        f"about {took.calls:,} calls, {took.prompt_tokens / 1e6:,.2f} M prompt and "
        f"{took.answer_tokens / 1e6:,.2f} M answer tokens, "
        f"{timedelta(seconds=round(took.seconds))} (h:mm:ss){cost}"
    )
