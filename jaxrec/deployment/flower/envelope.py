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


def bytes_of(message: Message) -> bytes:
    """The bytes that a Flower message carries; DataError where it carries none, or says why."""
    if message.has_error():
        raise DataError(f"{message.error.reason or 'Flower has no reason'}")
    try:
        data = message.content.config_records[NAME][NAME]
    except KeyError as error:
        raise DataError("a message without bytes of jaxrec") from error
    if not isinstance(data, bytes):
        raise DataError("a message whose content is no bytes")
    return data


def fingerprint(public_key: bytes) -> str:
    """What a client is called whose key has no name."""
    return hashlib.sha256(public_key).hexdigest()[:12]
