"""Content at rest in a segment: AES-256-GCM under the segment's own key, which lives in a side file.

Destroying the side file makes the content unreadable, wherever copies of the segment's blocks remain.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12


class Sealer:
    """Encrypts the texts of one segment.

    The nonce is a counter: a key belongs to one writer of one segment, so a counter never repeats and costs nothing.

    Args:
        key: 32 random bytes used for no other segment.
    """

    def __init__(self, key: bytes) -> None:
        self._encrypt = AESGCM(key).encrypt
        self._count = 0

    def seal(self, plain: bytes, about: bytes) -> tuple[int, bytes]:
        """Encrypt; ``about`` (ids of the record) is bound to the text but not stored with it.

        Returns:
            The counter, from 1, and the ciphertext with its tag.
        """
        self._count = count = self._count + 1
        return count, self._encrypt(count.to_bytes(_NONCE_BYTES, "little"), plain, about)


class Opener:
    """Decrypts the texts of one segment.

    Args:
        key: the segment's key; ``None`` when it has been destroyed, and then nothing opens.
    """

    def __init__(self, key: bytes | None) -> None:
        self._cipher = AESGCM(key) if key else None

    def open(self, count: int, sealed: bytes, about: bytes) -> bytes | None:
        """Decrypt what ``Sealer.seal`` made; ``None`` if the key is gone or the text was altered or moved."""
        if self._cipher is None or count < 0:
            return None
        with suppress(InvalidTag):
            return self._cipher.decrypt(count.to_bytes(_NONCE_BYTES, "little"), sealed, about)
        return None


def create_secret(path: Path, size: int = KEY_BYTES) -> bytes:
    """Make a file of random bytes that only its owner can read.

    Raises:
        FileExistsError: the file is already there.
    """
    secret = os.urandom(size)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, secret)
    finally:
        os.close(descriptor)
    return secret


def read_secret(path: Path, size: int = KEY_BYTES) -> bytes | None:
    """Read a secret file; ``None`` if it is gone or not whole."""
    with suppress(FileNotFoundError):
        secret = path.read_bytes()
        return secret if len(secret) == size else None
    return None


def shared_secret(path: Path) -> bytes:
    """The secret in ``path``, made by whichever process comes first and whole for everybody."""
    while (secret := read_secret(path)) is None:
        draft = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
        create_secret(draft)
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return secret


def destroy_secret(path: Path) -> None:
    """Overwrite a secret file and remove it; nothing happens if it is gone.

    The overwriting is best effort: file systems that copy on write keep old blocks for a while.
    """
    with suppress(FileNotFoundError):
        with path.open("r+b") as file:
            file.write(b"\0" * path.stat().st_size)
            file.flush()
            os.fsync(file.fileno())
        path.unlink()


def hashed(text: str, key: bytes) -> str:
    """A keyed hash (BLAKE2b, 128 bits) that tells equal texts from different ones and nothing else."""
    return "blake2b:" + hashlib.blake2b(text.encode("utf-8", "replace"), key=key, digest_size=16).hexdigest()
