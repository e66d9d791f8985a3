"""The settings of a service: where it listens, how it batches, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from jaxrec.settings.fields import check, setting


@dataclass(frozen=True)
class Settings:
    """Every limit holds for one request unless it says otherwise."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine's."""
    port: int = setting(8000, at_least=0, at_most=65535)
    """Port to listen at; 0 for any that is free."""
    watch: float = setting(1.0, at_least=0)
    """Seconds between two looks at RUN for a new run in its place; 0: it stays as it is."""
    max_users: int = setting(64, at_least=1)
    """Users, histories, items or pairs of a request, and of the requests that share a call of the
    device."""
    max_k: int = setting(200, at_least=1)
    """Items of a list."""
    max_items: int = setting(1000, at_least=1)
    """Items of a history."""
    max_body: int = setting(1_000_000, at_least=1)
    """Bytes of a body."""
    batch_wait: float = setting(1.0, at_least=0)
    """Milliseconds that a request waits for others to share its call of the device."""
    max_waiting: int = setting(256, at_least=1)
    """Requests that wait at a time; others are told to come again."""
    max_connections: int = setting(1000, at_least=1)
    """Connections at a time, idle ones too."""
    timeout: float = setting(10.0, above=0)
    """Seconds until a request that waits for its answer is given up."""
    slow: float = setting(10.0, above=0)
    """Seconds that a client may take to send its headers, to send its body, or to go on reading."""
    drain: int = setting(30, at_least=0)
    """Seconds that requests in flight have to end after SIGTERM."""

    __post_init__ = check
