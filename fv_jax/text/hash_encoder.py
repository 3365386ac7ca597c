"""A text encoder without files and without training: hashes of words, their left neighbours and their positions.

It replaces T5 for small networks. Like T5's, its embeddings are frozen; a network's text projection is trained on them.
A text is its UTF-8 bytes. Words are the runs of ASCII letters (in lower case), digits and bytes from 128 on, cut after
24 bytes; everything else separates them. Word i, of bytes w_i, is one token

    [ (word(w_i) + spelling(w_i) / 2) / sqrt(5/4)  |  pair(w_{i-1}, w_i)  |  place(i) ]        5 : 2 : 1 of the width

word, pair    a hash to values of mean 0 and variance 1: the embeddings of two words are independent
spelling      the sum of such hashes of the word's three-byte pieces, ends included, over the root of their number:
              "ladybugs" is near "ladybug"
place         triangle waves of i, so that near positions have near embeddings

The pair distinguishes "from left to right" and "from right to left" in single tokens; without it their words are the
same. Tokens after the last word are zeros. A text without words is all zeros, which is the unconditional input.

The hash is SHAKE-256, sums are of integers, and all else is exact or correctly rounded: every machine computes the same
bits. Dimensions: B batch, L tokens, D width.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.hashing import fingerprint
from fv_jax.text.encoder import TextConfig, TextEncoderFingerprint, TextEncoderKind, Truncation, check_text

LENGTH, DIM = 16, 64
_VERSION = 'fv_jax bytes encoder 1'  # the fingerprint is made of it; it changes whenever the embeddings do
_WORD = re.compile(rb'[a-z0-9\x80-\xff]{1,24}')
_LEVELS = 2**16


class HashTextEncoder:
    """The `TextEncoder` that hashes words, as the module describes."""

    def __init__(self, length: int = LENGTH, dim: int = DIM):
        """Args:
          length: tokens, and so words, of a text.
          dim: their width, a multiple of 8.

        Raises:
          ConfigError: an invalid length or width.
        """
        require(length >= 1, f'length={length}: must be at least 1', ConfigError)
        if dim < 8 or dim % 8:
            raise ConfigError(f'dim={dim}: must be a multiple of 8; use {max(dim // 8 * 8, 8)} or {dim // 8 * 8 + 8}')
        self.fingerprint = TextEncoderFingerprint(fingerprint([f'{_VERSION}, {length} x {dim}']), length, dim)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes texts as (B, length, dim) float32 of variance about 1.

        Raises ValueError for a text that is not Unicode.
        """
        length, dim = self.fingerprint.length, self.fingerprint.dim
        out_BLD = np.zeros((len(texts), length, dim), np.float32)
        eighth = dim // 8
        for out_LD, text in zip(out_BLD, texts, strict=True):
            before = b''
            for i, word in enumerate(_words(text)[:length]):
                pair = _hash(b'pair', before + b' ' + word, 2 * eighth)
                out_LD[i] = np.concatenate(
                    [_embed_word(word, 5 * eighth), _scale(pair, 1.0), _embed_position(i, eighth)]
                )
                before = word
        return out_BLD

    def truncation(self, text: str) -> Truncation | None:
        """Returns how many words of a text are used, or None if all are."""
        count, length = len(_words(text)), self.fingerprint.length
        return Truncation(count, length) if count > length else None


def _words(text: str) -> list[bytes]:
    return _WORD.findall(check_text(text).encode().lower())  # of bytes, `lower` is ASCII's


def _hash(kind: bytes, value: bytes, size: int) -> np.ndarray:
    """Hashes bytes to `size` odd integers, int64, evenly distributed between -2^16 and 2^16."""
    digest = hashlib.shake_256(kind + b':' + value).digest(2 * size)
    return 2 * np.frombuffer(digest, '<u2').astype(np.int64) - (_LEVELS - 1)


def _scale(values: np.ndarray, variance: float) -> np.ndarray:
    """Scales sums of hashes to variance 1; `variance` is theirs, relative to that of one hash."""
    return values * (np.sqrt(3 / variance) / _LEVELS)


def _embed_word(word: bytes, size: int) -> np.ndarray:
    ends = b'<' + word + b'>'
    pieces = [ends[i : i + 3] for i in range(len(ends) - 2)]
    spelling = sum(_hash(b'piece', piece, size) for piece in pieces)
    whole = _hash(b'word', word, size)
    return (_scale(whole, 1.0) + 0.5 * _scale(spelling, len(pieces))) / np.sqrt(1.25)


def _embed_position(i: int, size: int) -> np.ndarray:
    """Computes triangle waves (size,) between -1.5 and 1.5, in pairs a quarter period apart.

    The periods are 64, 32, 16, 8 words, then 64 again.
    """
    waves = np.arange(size)
    period = 64 >> (waves // 2 % 4)
    phase = (i / period + waves % 2 / 4) % 1
    return 6 * np.abs(phase - 0.5) - 1.5


def _open(config: TextConfig) -> HashTextEncoder:
    return HashTextEncoder(config.length or LENGTH, config.dim or DIM)


KIND = TextEncoderKind(
    _open, lambda config: _open(config).fingerprint, options=frozenset({'length', 'dim'}), online=True
)
