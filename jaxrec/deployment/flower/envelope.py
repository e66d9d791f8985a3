"""Bytes of `deployment.messages` in Flower's messages."""

from __future__ import annotations

import hashlib

from flwr.app import ConfigRecord, Message, RecordDict

from jaxrec.types import DataError

NAME = "jaxrec"
KIND = "query"


def content_of(data: bytes) -> RecordDict:
    """The content of a Flower message that carries the bytes."""
    return RecordDict({NAME: ConfigRecord({NAME: data})})


def bytes_of(message: object) -> bytes:
    """The bytes that a Flower message carries; DataError where it carries none."""
    if isinstance(message, Message) and message.has_content():
        records = message.content.config_records
        if NAME in records and isinstance(data := records[NAME].get(NAME), bytes):
            return data
    raise DataError("a message without bytes of jaxrec")


def fingerprint(public_key: bytes) -> str:
    """What a client is called whose key has no name."""
    return hashlib.sha256(public_key).hexdigest()[:12]
