"""The text encoders behind one door: `open_text_encoder`.

A T5 that is opened holds its weights until the last reference to it is gone; nothing else keeps them.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fv_jax.core import config as config_lib
from fv_jax.data import bytes_encoder, tokenizer
from fv_jax.data.text import BYTES, TextConfig, TextEncoder, TextStamp, Truncation
from fv_jax.data.tokenizer import Tokenizer
from fv_jax.models.t5 import T5
from fv_jax.weights import t5
from fv_jax.weights.keymap import Tensors

SPIECE = 'spiece.model'
BATCH = 8  # texts encoded at once
_SAMPLES, _SAMPLE = 16, 256  # parts of a tensor that the digest reads, and elements of each


def open_text_encoder(config: TextConfig) -> TextEncoder:
    """The text encoder that a configuration names.

    Raises:
      FileNotFoundError: a T5 folder, or a file of it, is not there.
      ValueError: the folder does not hold a whole T5 v1.1 and its tokenizer, or there is no encoder in the config.
    """
    if not config.encoder:
        raise ValueError("encoder='': no text encoder is named; use 'bytes' or a T5 folder")
    if config.encoder == BYTES:
        return bytes_encoder.BytesEncoder(config.length or bytes_encoder.LENGTH, config.dim or bytes_encoder.DIM)
    folder = Path(config.encoder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; a text encoder is 'bytes' or a T5 folder")
    if not (folder / SPIECE).is_file():
        raise FileNotFoundError(f'{folder}: holds no {SPIECE}, the tokenizer')
    tokens = Tokenizer.open(folder / SPIECE, config.length or tokenizer.OFFICIAL_LENGTH)
    sizes = t5.read_config(folder)
    if tokens.vocab_size > sizes.vocab_size:
        raise ValueError(
            f'{folder}: the tokenizer has {tokens.vocab_size} ids and the network {sizes.vocab_size}; they are not '
            'of one model'
        )
    model = t5.load(folder, dtype=config.dtype, param_dtype=config.dtype)
    return T5Encoder(model, tokens, t5_digest(folder, tokens.length, config.masked), masked=config.masked)


def text_stamp(config: TextConfig) -> TextStamp:
    """What `open_text_encoder` would open, without its weights: a T5 folder's are sampled for the digest (`t5_digest`).

    Raises FileNotFoundError or ValueError as `open_text_encoder` does.
    """
    if config.encoder in ('', BYTES):
        encoder = open_text_encoder(config)
        return TextStamp(encoder.digest, encoder.length, encoder.dim)
    folder, length = Path(config.encoder), config.length or tokenizer.OFFICIAL_LENGTH
    return TextStamp(t5_digest(folder, length, config.masked), length, t5.read_config(folder).embed_dim)


class T5Encoder:
    """A `TextEncoder`: T5 as FlashVideo runs it (FACTS 6), or with the padding hidden."""

    def __init__(self, model: T5, tokens: Tokenizer, digest: str, *, masked: bool = False):
        """`model` and `tokens` are of one folder, `digest` is its `t5_digest`. masked: hide the padding from the text;
        the padding's own outputs are kept in any case.
        """
        self._graphdef, self._state = nnx.split(model)
        self._tokens, self._masked = tokens, masked
        self.length, self.dim, self.digest = tokens.length, model.config.embed_dim, digest

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(B, length, dim) float32; one executable for each number of texts up to eight, which go at once."""
        ids_BL = self._tokens(texts)
        out_BLD = np.empty((len(texts), self.length, self.dim), np.float32)
        for first in range(0, len(texts), BATCH):
            rows = slice(first, first + BATCH)
            ids = jnp.asarray(ids_BL[rows])
            out_BLD[rows] = jax.device_get(embedded(self._state, ids, self._graphdef, self._masked))
        return out_BLD

    def truncation(self, text: str) -> Truncation | None:
        """What is cut from the end of a text; the tokens are SentencePiece's."""
        return self._tokens.truncation(text)


# Not the encoder's own: a T5 that was let go and is opened again compiles nothing.
@functools.partial(jax.jit, static_argnums=(2, 3))
def embedded(state: nnx.State, ids_BL: jax.Array, graphdef: nnx.GraphDef, masked: bool) -> jax.Array:
    """Token ids -> embeddings: the executable of every T5."""
    mask_BL = ids_BL != tokenizer.PAD if masked else None
    return nnx.merge(graphdef, state)(ids_BL, mask_BL)


def t5_digest(folder: str | Path, length: int, masked: bool) -> str:
    """Names a T5 folder and how it is run, in 16 hexadecimal digits.

    A hash of the sizes in config.json, of the whole tokenizer, of `length` and `masked`, and of every encoder tensor's
    name, shape, dtype and 16 parts of 256 values, evenly spread. How the tensors are spread over files does not matter,
    nor what T5 computes in. A change of a few values between the parts goes unseen: the digest tells models apart, it
    does not guard against damage.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    run = {'sizes': config_lib.to_dict(t5.read_config(folder)), 'length': length, 'masked': masked}
    digest.update(json.dumps(run, sort_keys=True).encode())
    digest.update((folder / SPIECE).read_bytes())
    _add_tensors(digest, t5.read_tensors(folder))
    return digest.hexdigest()[:16]


def _add_tensors(digest: 'hashlib._Hash', tensors: Tensors) -> None:
    for key in sorted(tensors):
        flat = tensors[key].numpy().reshape(-1)  # a view: only what is sampled is read
        digest.update(f'{key} {tensors[key].shape} {tensors[key].dtype}'.encode())
        starts = np.linspace(0, max(len(flat) - _SAMPLE, 0), _SAMPLES).astype(np.int64)
        for start in np.unique(starts):
            digest.update(flat[start : start + _SAMPLE].tobytes())
