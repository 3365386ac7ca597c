"""The `TextEncoder` protocol, its configuration, and what text encoders have in common.

An encoder gives every text the same number of tokens, so that embeddings can be stored beside clips and stacked.
"No text", the unconditional input, is not the empty text: it is all zeros (model guide 6).

A new encoder is one file with a `TextEncoderKind`, and one entry in the registry, `weights/text_encoders.py`.
Dimensions: B batch, L tokens, D width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_choice, check_range


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Configuration of a text encoder.

    Attributes:
      encoder: '' for none, a name in the registry such as 'hash', or a folder such as T5's (config.json, spiece.model,
        *.safetensors).
      length: tokens of a text; None is the encoder's own: 226 of T5, 16 of 'hash'.
      dim: width, where an encoder can be of any; None is its own: 64 of 'hash'.
      masked: hide the padding within T5. FlashVideo does not (model guide 6), and its weights expect that.
      dtype: what T5 keeps its weights in and multiplies in. The official run is bfloat16, 9.5 GB of XXL.
    """

    encoder: str = ''
    length: int | None = None
    dim: int | None = None
    masked: bool = False
    dtype: Literal['float32', 'bfloat16'] = 'bfloat16'

    def __post_init__(self):
        check_choice(self, 'dtype', choices=('float32', 'bfloat16'))
        check_range(self, 'length', 'dim', low=1)
        for name in () if self.encoder else ('dim', 'masked'):
            value = getattr(self, name)
            require(not value, f'{name}={value}: no text encoder is named; leave it out or name one', ConfigError)


@dataclasses.dataclass(frozen=True)
class Truncation:
    """A text that was longer than its encoder takes: how many tokens it has, and how many from its start are used."""

    tokens: int
    used: int

    def __str__(self) -> str:
        return f'the text has {self.tokens} tokens, and only the first {self.used} are used'


@dataclasses.dataclass(frozen=True)
class TextEncoderFingerprint:
    """Identifies a text encoder by what its embeddings depend on.

    Attributes:
      digest: 16 hexadecimal digits. Two encoders of one digest agree, up to rounding.
      length: tokens of a text.
      dim: their width.
    """

    digest: str
    length: int
    dim: int

    def __str__(self) -> str:
        return f'{self.digest} ({self.length} tokens of {self.dim})'


class TextEncoder(Protocol):
    """Encodes texts as embeddings of one length and width."""

    fingerprint: TextEncoderFingerprint

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(B, L, D) float32, each text independent of the others. Raises ValueError for what is no text."""
        ...

    def truncation(self, text: str) -> Truncation | None:
        """Returns how much of a text `encode` uses, or None if it uses all of it."""
        ...


@dataclasses.dataclass(frozen=True)
class TextEncoderKind:
    """How the text encoders of one kind are opened.

    Attributes:
      open: gives the encoder that a configuration names. Raises FileNotFoundError or ValueError where it cannot.
      fingerprint: that of the encoder which `open` would give, without reading its weights. Raises the same.
      options: the fields of `TextConfig`, besides `encoder`, that this kind takes.
      online: captions are embedded as clips are read; otherwise `prepare` embeds them beforehand.
    """

    open: Callable[[TextConfig], TextEncoder]
    fingerprint: Callable[[TextConfig], TextEncoderFingerprint]
    options: frozenset[str]
    online: bool


def embed_caption(encoder: TextEncoder, caption: str | None) -> np.ndarray:
    """A caption's embedding (L, D) as records store it, float16; zeros, the unconditional input, for None.

    Raises ValueError for a caption that is not Unicode.
    """
    if caption is None:
        return np.zeros((encoder.fingerprint.length, encoder.fingerprint.dim), np.float16)
    return encoder.encode([caption])[0].astype(np.float16)


def check_text(text: str) -> str:
    """`text` itself. Raises ValueError when it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f'the text is not Unicode: it has half a character at position {error.start}; was it read as UTF-8?'
        ) from None
    return text
