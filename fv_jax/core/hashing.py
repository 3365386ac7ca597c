"""Fingerprints: short hashes that identify the content of arrays, files and configurations."""

import hashlib
from collections.abc import Iterable

import numpy as np


def fingerprint(parts: Iterable[str | bytes | np.ndarray]) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of `parts`, concatenated; text is encoded as UTF-8.

    A fingerprint distinguishes contents that differ by accident; it is too short to protect against forgery.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]
