"""The T5 text encoder: tokenizer and network.

An encoder holds T5's weights until the last reference to it is dropped.
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
    """A `TextEncoder`: T5 as FlashVideo runs it (model guide 6), or with masked padding."""

    def __init__(self, model: T5, tokens: Tokenizer, fingerprint: TextEncoderFingerprint, *, masked: bool = False):
        """Args:
        model: the network.
        tokens: the tokenizer of the same folder.
        fingerprint: of the same folder.
        masked: whether attention masks padding; the outputs of padding tokens are kept in any case.
        """
        self._graphdef, self._state = nnx.split(model)
        self._tokens, self._masked = tokens, masked
        self.fingerprint = fingerprint

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes texts as (B, length, dim) float32.

        Eight texts are encoded at a time; there is one executable for each number of texts up to eight.
        """
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


# A function of the module, not of each encoder: a T5 that is opened again does not compile again.
@functools.partial(jax.jit, static_argnums=(2, 3))
def embed_ids(state: nnx.State, ids_BL: jax.Array, graphdef: nnx.GraphDef, masked: bool) -> jax.Array:
    """Encodes token ids (B, L) as embeddings (B, L, D).

    All T5 encoders of one configuration share the executable.
    """
    mask_BL = ids_BL != tokenizer.PAD if masked else None
    return nnx.merge(graphdef, state)(ids_BL, mask_BL)
