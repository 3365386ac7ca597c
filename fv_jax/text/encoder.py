"""What every text encoder is to the rest of the house: prompts in, embeddings out, and a digest that names it.

An encoder gives every text the same number of tokens, so that embeddings can be stored beside clips and stacked.
"No text", the unconditional input, is not the empty text: it is all zeros (model guide 6).
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from fv_jax.core.config import ConfigError

BYTES = 'bytes'  # the name of the encoder that needs no files


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Which text encoder, and how it is run.

    encoder: '' for none, 'bytes' (`bytes_encoder.py`), or a T5 folder (config.json, spiece.model, *.safetensors).
    length: tokens a text; None is the encoder's own: 226 of T5, 16 of 'bytes'.
    dim: width, of 'bytes' only; None is 64.
    masked: hide the padding within T5. FlashVideo does not (model guide 6), and its weights expect that.
    dtype: what T5 keeps its weights in and multiplies in. The official run is bfloat16, 9.5 GB of XXL.
    """

    encoder: str = ''
    length: int | None = None
    dim: int | None = None
    masked: bool = False
    dtype: Literal['float32', 'bfloat16'] = 'bfloat16'

    def __post_init__(self):
        if self.dtype not in ('float32', 'bfloat16'):
            raise ConfigError(f'dtype={self.dtype}: must be one of float32, bfloat16')
        for name in ('length', 'dim'):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f'{name}={getattr(self, name)}: must be at least 1')
        if self.dim is not None and self.encoder != BYTES:
            raise ConfigError(f"dim={self.dim}: only the encoder 'bytes' can be of any width; leave it out")
        if self.masked and self.encoder in ('', BYTES):
            raise ConfigError('masked=True: is a choice of T5; leave it out')


@dataclasses.dataclass(frozen=True)
class Truncation:
    """A text that was longer than its encoder takes: how many tokens it has, and how many from its start are used."""

    tokens: int
    used: int

    def __str__(self) -> str:
        return f'the text has {self.tokens} tokens, and only the first {self.used} are used'


@dataclasses.dataclass(frozen=True)
class TextStamp:
    """What embeddings depend on, and their size: `TextEncoder`'s attributes, known without opening one."""

    digest: str
    length: int
    dim: int

    def __str__(self) -> str:
        return f'{self.digest} ({self.length} tokens of {self.dim})'


class TextEncoder(Protocol):
    """Texts to embeddings.

    length, dim: tokens of a text and their width.
    digest: names what the embeddings depend on, in 16 hexadecimal digits. Two encoders of one digest agree, up to
      rounding.
    """

    length: int
    dim: int
    digest: str

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(B, length, dim) float32, each text independent of the others. Raises ValueError for what is no text."""
        ...

    def truncation(self, text: str) -> Truncation | None:
        """What `encode` leaves out of a text that is too long; None when it uses all of it."""
        ...


def check_text(text: str) -> str:
    """`text` itself. Raises ValueError when it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f'the text is not Unicode: it has half a character at position {error.start}; was it read as UTF-8?'
        ) from None
    return text
