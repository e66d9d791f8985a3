"""Keys, sealed shares and masks, all of them by the package `cryptography`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from jaxrec.types import SettingError

KEY, TAG = 32, 16  # bytes of a key, and of what proves that a sealed message is whole
BLOCK = 2**17  # bytes of a mask at a time: they stay in the cache


@functools.cache
def _cryptography() -> SimpleNamespace:
    """The parts used; SettingError where the package is missing."""
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import x25519
        from cryptography.hazmat.primitives.ciphers import Cipher, aead, algorithms
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as error:
        raise SettingError(
            "privacy = 'secure_sum': its protocol needs the package cryptography, which is not "
            "installed: pip install 'jaxrec[privacy]'"
        ) from error
    return SimpleNamespace(
        InvalidTag=InvalidTag, SHA256=hashes.SHA256, PrivateKey=x25519.X25519PrivateKey,
        PublicKey=x25519.X25519PublicKey, Cipher=Cipher, ChaCha20=algorithms.ChaCha20,
        Sealing=aead.ChaCha20Poly1305, HKDF=HKDF,
    )  # fmt: skip


class KeyPair(NamedTuple):
    """An X25519 key: the secret as the library's object, the public half as bytes [32]."""

    secret: Any
    public: bytes


def key_pair(secret: bytes) -> KeyPair:
    """The key pair of 32 random bytes."""
    key = _cryptography().PrivateKey.from_private_bytes(secret)
    return KeyPair(key, key.public_key().public_bytes_raw())


def exchange(mine: KeyPair, theirs: bytes) -> bytes:
    """The secret that two key pairs have in common; ValueError where theirs is no key."""
    return mine.secret.exchange(_cryptography().PublicKey.from_public_bytes(theirs))


def derive(secret: bytes, purpose: bytes) -> bytes:
    """The key of an exchanged secret for one purpose."""
    parts = _cryptography()
    return parts.HKDF(parts.SHA256(), KEY, None, b"jaxrec " + purpose).derive(secret)


def seal(key: bytes, plain: bytes) -> bytes:
    """Encrypts and authenticates; a key must seal one message only."""
    return _cryptography().Sealing(key).encrypt(bytes(12), plain, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """What was sealed; ValueError if it was with another key or has changed since."""
    parts = _cryptography()
    try:
        return parts.Sealing(key).decrypt(bytes(12), sealed, None)
    except parts.InvalidTag:
        raise ValueError("was sealed with another key, or has been changed") from None


def _stream(key: bytes) -> Any:
    parts = _cryptography()
    return parts.Cipher(parts.ChaCha20(key, bytes(16)), None).encryptor()


def keystream(key: bytes, size: int) -> bytes:
    """The first bytes of a key's ChaCha20 stream."""
    return _stream(key).update(bytes(size))


def masked(vector: np.ndarray, masks: Iterable[tuple[bytes, int]], bits: int) -> np.ndarray:
    """A vector plus or minus the masks of some keys, modulo 2^bits.

    Args:
      vector: uint32 [d]
      masks: (key, sign): a mask is the key's stream as little-endian words, the least that hold
        `bits`. It counts modulo 2^bits.
    Returns:
      uint32 [d]
    """
    word = np.dtype(f"<u{1 if bits <= 8 else 2 if bits <= 16 else 4}")
    total = vector.astype(word)
    parts = np.split(total, range(BLOCK // word.itemsize, total.size, BLOCK // word.itemsize))
    zeros, drawn = memoryview(bytes(BLOCK)), memoryview(bytearray(BLOCK))
    for key, sign in masks:
        stream = _stream(key)
        for part in parts:
            here = drawn[: part.nbytes]
            stream.update_into(zeros[: part.nbytes], here)
            add = np.add if sign > 0 else np.subtract
            add(part, np.frombuffer(here, word), out=part)
    return total.astype(np.uint32) & np.uint32(2**bits - 1)
