"""T5 as a `TextEncoder`: texts, tokens, embeddings.

An encoder holds T5's weights until the last reference to it is gone; nothing else keeps them.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.models.t5 import T5
from fv_jax.text import tokenizer
from fv_jax.text.encoder import TextEncoderFingerprint, Truncation
from fv_jax.text.tokenizer import Tokenizer

BATCH = 8  # texts encoded at once


class T5Encoder:
    """A `TextEncoder`: T5 as FlashVideo runs it (model guide 6), or with the padding hidden."""

    def __init__(self, model: T5, tokens: Tokenizer, fingerprint: TextEncoderFingerprint, *, masked: bool = False):
        """`model`, `tokens` and `fingerprint` are of one folder. masked: hide the padding from the text;
        the padding's own outputs are kept in any case.
        """
        self._graphdef, self._state = nnx.split(model)
        self._tokens, self._masked = tokens, masked
        self.fingerprint = fingerprint

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(B, length, dim) float32; one executable for each number of texts up to eight, which go at once."""
        ids_BL = self._tokens(texts)
        out_BLD = np.empty((len(texts), self.fingerprint.length, self.fingerprint.dim), np.float32)
        for first in range(0, len(texts), BATCH):
            rows = slice(first, first + BATCH)
            ids = jnp.asarray(ids_BL[rows])
            out_BLD[rows] = jax.device_get(embed_ids(self._state, ids, self._graphdef, self._masked))
        return out_BLD

    def truncation(self, text: str) -> Truncation | None:
        """Returns how many SentencePiece tokens of a text are used, or None if all are."""
        return self._tokens.truncation(text)


# Not the encoder's own: a T5 that was let go and is opened again compiles nothing.
@functools.partial(jax.jit, static_argnums=(2, 3))
def embed_ids(state: nnx.State, ids_BL: jax.Array, graphdef: nnx.GraphDef, masked: bool) -> jax.Array:
    """Token ids -> embeddings: the executable of every T5."""
    mask_BL = ids_BL != tokenizer.PAD if masked else None
    return nnx.merge(graphdef, state)(ids_BL, mask_BL)
