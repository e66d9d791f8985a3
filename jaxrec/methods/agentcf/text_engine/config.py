"""Settings of AgentCF++'s text engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxrec.settings.fields import check, setting


@dataclass(frozen=True)
class Config:
    """Settings of AgentCF++'s text engine."""

    llm: Literal["server", "local"] = "server"
    """Who answers: a server that speaks OpenAI's chat completions, or a decoder in this process."""
    base_url: str = "http://localhost:8000/v1"
    """Address of the server; a model of the same name elsewhere is another one."""
    model: str = ""
    """Name of the model on the server or, if local, the folder that holds it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's API key; it may be unset for a local server."""
    temperature: float = setting(0.0, at_least=0)
    """Of sampling, no unit; 0: the most likely answer."""
    concurrency: int = setting(8, at_least=1)
    """Calls under way at once (server), prompts in a batch (local)."""
    timeout: float = setting(120.0, above=0)
    """Seconds from sending a call to the last byte of its answer; then it is tried again."""
    retries: int = setting(6, at_least=0)
    """Tries of a call after the first one, when the server fails."""
    limit_as: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit on an answer's length."""
    spare_tokens: int = setting(0, at_least=0)
    """Tokens that an answer may have beside what it is asked for; for models that think first."""
    answers: str = ""
    """Folder that keeps every answer; empty: llm in the cache folder of jaxrec."""
    attempts: int = setting(3, at_least=1)
    """Calls until an answer that does not follow the format is given up."""
    unusable_limit: float = setting(0.5, at_least=0, at_most=1)
    """Share of the answers that may be refused, cut, empty, filtered or not in the format; above it
    the run stops with their number and reasons. 1: it never stops."""
    schedule: Literal["dataflow", "waves", "sequential"] = "dataflow"
    """Which calls are made at once; the result is the same."""
    events_per_round: int = setting(0, at_least=0)
    """Train rows a round takes; 0: all, one epoch. Rounds beyond the last row begin anew."""
    private_words: int = setting(150, at_least=1)
    """Length of a user's memory of one domain."""
    fused_words: int = setting(180, at_least=1)
    """Length of what a user's memories tell of one domain."""
    item_words: int = setting(50, at_least=1)
    """Length of an item's memory."""
    domains: tuple[str, ...] = ()
    """Names of the domains in prompts, such as movies toys; by default domain 0, domain 1, ...;
    no more than there are, no two alike."""
    groups: int = setting(0, at_least=-1)
    """Interest groups; 0: as many as the square root of the users, -1: none."""
    tags: int = setting(6, at_least=1)
    """Interests named for each user."""
    tag_encoder: str = "auto"
    """What makes vectors of the tags: minilm, tfidf, a sentence encoder's folder, or auto."""
    shown: int = setting(5, at_least=0)
    """Items a group shows of the latest, and as many of the most taken."""
    shown_groups: int = setting(3, at_least=0)
    """Groups shown to a user at most."""
    prompt_price: float = setting(0.0, at_least=0)
    """Of a million prompt tokens, in any currency; 0: unknown."""
    answer_price: float = setting(0.0, at_least=0)
    """Of a million answer tokens."""
    answer_seconds: float = setting(3.0, at_least=0)
    """Seconds that an answer is expected to take, for the estimate before a run."""
    stories: int = setting(3, at_least=0)
    """Users whose memories before and after are written to stories.md."""

    __post_init__ = check
