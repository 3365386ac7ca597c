"""The `TextEncoder` protocol, its configuration, and what text encoders have in common.

An encoder gives every text the same number of tokens, so that embeddings can be stored with clips and stacked.
The unconditional input is not the embedding of the empty text: it is all zeros (model guide 6).

A new encoder is one file with a `TextEncoderKind`, and one entry in the registry, `weights/text_encoders.py`.
Dimensions: B batch, L tokens, D width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_choice, check_range
from fv_jax.core.paths import PathTextOrEmpty


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Configuration of a text encoder.

    Attributes:
      encoder: '' for none, a name in the registry such as 'hash', or a folder such as T5's (config.json, spiece.model,
        *.safetensors).
      length: tokens of a text; None is the encoder's default: 226 of T5, 16 of 'hash'.
      dim: width, for an encoder of any width; None is its default: 64 of 'hash'.
      masked: whether T5's attention masks padding. FlashVideo's does not (model guide 6), and its weights expect that.
      dtype: of T5's parameters and computation. The official run is bfloat16, 9.5 GB for XXL.
    """

    encoder: PathTextOrEmpty = ''
    length: int | None = None
    dim: int | None = None
    masked: bool = False
    dtype: Literal['float32', 'bfloat16'] = 'bfloat16'

    def __post_init__(self):
        check_choice(self, 'dtype', choices=('float32', 'bfloat16'))
        check_range(self, 'length', 'dim', low=1)
        for name in () if self.encoder else ('dim', 'masked'):
            value = getattr(self, name)
            require(
                not value,
                f'{name}={value}: has no effect without a text encoder; remove it or set encoder',
                ConfigError,
            )


@dataclasses.dataclass(frozen=True)
class Truncation:
    """How much of a text that is longer than its encoder takes is used.

    Attributes:
      tokens: of the text.
      used: of them, from the start.
    """

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
        """Encodes texts, each independent of the others.

        Args:
          texts: B strings.

        Returns:
          Embeddings (B, L, D), float32.

        Raises:
          ValueError: a text is not valid Unicode.
        """
        ...

    def truncation(self, text: str) -> Truncation | None:
        """Returns how much of a text `encode` uses, or None if it uses all of it."""
        ...


@dataclasses.dataclass(frozen=True)
class TextEncoderKind:
    """How the text encoders of one kind are opened.

    Attributes:
      open: opens the encoder of a configuration. Raises FileNotFoundError or ValueError.
      fingerprint: computes the fingerprint of the encoder that `open` would return, without reading weights. Raises the
        same.
      options: the fields of `TextConfig`, besides `encoder`, that this kind takes.
      online: whether captions are embedded as clips are read; otherwise `prepare` embeds them beforehand.
    """

    open: Callable[[TextConfig], TextEncoder]
    fingerprint: Callable[[TextConfig], TextEncoderFingerprint]
    options: frozenset[str]
    online: bool


def embed_caption(encoder: TextEncoder, caption: str | None) -> np.ndarray:
    """Embeds a caption as records store it.

    Args:
      encoder: the encoder.
      caption: the text; None is the unconditional input, zeros.

    Returns:
      (L, D) float16.

    Raises:
      ValueError: the caption is not valid Unicode.
    """
    if caption is None:
        return np.zeros((encoder.fingerprint.length, encoder.fingerprint.dim), np.float16)
    return encoder.encode([caption])[0].astype(np.float16)


def check_text(text: str) -> str:
    """Returns `text`. Raises ValueError if it cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f'the text is not valid Unicode: surrogate at position {error.start}; read it as UTF-8'
        ) from None
    return text
