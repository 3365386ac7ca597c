"""T5's tokenizer: SentencePiece ids, the end-of-sequence token, then padding to a fixed length (model guide 6).

    ids = [pieces of the text ..., 1, 0, 0, ...]

The text is passed to SentencePiece unchanged: not lower-cased, not cleaned, not stripped. Of a text that is too long
the first pieces are kept, followed by the end-of-sequence token.
"""

from collections.abc import Sequence

import numpy as np
import sentencepiece

from fv_jax.core.checks import error_context, require
from fv_jax.core.paths import StoragePath, as_path
from fv_jax.text.encoder import Truncation, check_text

PAD, EOS = 0, 1
OFFICIAL_LENGTH = 226


class Tokenizer:
    """Converts texts to token ids.

    Attributes:
      length: ids of a text, with the end-of-sequence token.
      vocab_size: ids are below it.
    """

    def __init__(self, model: bytes, length: int = OFFICIAL_LENGTH):
        """Args:
          model: the contents of a spiece.model.
          length: at least 1.

        Raises:
          ValueError: not a SentencePiece model, or not one with T5's special tokens.
        """
        require(length >= 1, f'length={length}: must be at least 1, for the end-of-sequence token')
        self.length = length
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise ValueError('not a SentencePiece model, or corrupted; download it again') from None
        self.vocab_size = self._processor.vocab_size()
        found = self._processor.pad_id(), self._processor.eos_id()
        require(
            found == (PAD, EOS), f'not a tokenizer of T5: the ids of padding and end are {found}, must be {(PAD, EOS)}'
        )

    @classmethod
    def open(cls, path: str | StoragePath, length: int = OFFICIAL_LENGTH) -> 'Tokenizer':
        """Opens the tokenizer in a spiece.model. Raises FileNotFoundError, or ValueError naming the file."""
        with error_context(f'{path}: '):
            return cls(as_path(path).read_bytes(), length)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Tokenizes texts to ids (B, length), int32. Raises ValueError for a text that is not Unicode."""
        ids_BL = np.full((len(texts), self.length), PAD, np.int32)
        for row, text in zip(ids_BL, texts, strict=True):
            pieces = self._pieces(text)[: self.length - 1]
            row[: len(pieces) + 1] = [*pieces, EOS]
        return ids_BL

    def truncation(self, text: str) -> Truncation | None:
        """Returns how much of a text is truncated, or None. The end-of-sequence token is not counted."""
        count = len(self._pieces(text))
        return Truncation(count, self.length - 1) if count >= self.length else None

    def _pieces(self, text: str) -> list[int]:
        return self._processor.encode(check_text(text))
