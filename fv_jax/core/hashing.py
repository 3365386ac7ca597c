"""Fingerprints: short names for what arrays, files and configurations are made of."""

import hashlib
from collections.abc import Iterable

import numpy as np


def fingerprint(parts: Iterable[str | bytes | np.ndarray]) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over `parts`, one after another; a text is hashed as UTF-8.

    A fingerprint tells things apart that are different by accident; it is too short to guard against a forger.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()[:16]
