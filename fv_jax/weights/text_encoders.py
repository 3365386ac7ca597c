"""The text encoders behind one door: `open_text_encoder`.

A T5 that is opened holds its weights until the last reference to it is gone; nothing else keeps them.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from fv_jax.core import config as config_lib
from fv_jax.text import hash_encoder, tokenizer
from fv_jax.text.encoder import BYTES, TextConfig, TextEncoder, TextStamp
from fv_jax.text.t5_encoder import T5Encoder
from fv_jax.text.tokenizer import Tokenizer
from fv_jax.weights.layouts import t5_folder
from fv_jax.weights.layouts.key_table import Tensors

SPIECE = 'spiece.model'
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
        return hash_encoder.BytesEncoder(config.length or hash_encoder.LENGTH, config.dim or hash_encoder.DIM)
    folder = Path(config.encoder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; a text encoder is 'bytes' or a T5 folder")
    if not (folder / SPIECE).is_file():
        raise FileNotFoundError(f'{folder}: holds no {SPIECE}, the tokenizer')
    tokens = Tokenizer.open(folder / SPIECE, config.length or tokenizer.OFFICIAL_LENGTH)
    sizes = t5_folder.read_config(folder)
    if tokens.vocab_size > sizes.vocab_size:
        raise ValueError(
            f'{folder}: the tokenizer has {tokens.vocab_size} ids and the network {sizes.vocab_size}; they are not '
            'of one model'
        )
    model = t5_folder.load(folder, dtype=config.dtype, param_dtype=config.dtype)
    return T5Encoder(model, tokens, t5_digest(folder, tokens.length, config.masked), masked=config.masked)


def text_stamp(config: TextConfig) -> TextStamp:
    """What `open_text_encoder` would open, without its weights: a T5 folder's are sampled for the digest (`t5_digest`).

    Raises FileNotFoundError or ValueError as `open_text_encoder` does.
    """
    if config.encoder in ('', BYTES):
        encoder = open_text_encoder(config)
        return TextStamp(encoder.digest, encoder.length, encoder.dim)
    folder, length = Path(config.encoder), config.length or tokenizer.OFFICIAL_LENGTH
    return TextStamp(t5_digest(folder, length, config.masked), length, t5_folder.read_config(folder).embed_dim)


def t5_digest(folder: str | Path, length: int, masked: bool) -> str:
    """Names a T5 folder and how it is run, in 16 hexadecimal digits.

    A hash of the sizes in config.json, of the whole tokenizer, of `length` and `masked`, and of every encoder tensor's
    name, shape, dtype and 16 parts of 256 values, evenly spread. How the tensors are spread over files does not matter,
    nor what T5 computes in. A change of a few values between the parts goes unseen: the digest tells models apart, it
    does not guard against damage.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    run = {'sizes': config_lib.to_dict(t5_folder.read_config(folder)), 'length': length, 'masked': masked}
    digest.update(json.dumps(run, sort_keys=True).encode())
    digest.update((folder / SPIECE).read_bytes())
    _add_tensors(digest, t5_folder.read_tensors(folder))
    return digest.hexdigest()[:16]


def _add_tensors(digest: 'hashlib._Hash', tensors: Tensors) -> None:
    for key in sorted(tensors):
        flat = tensors[key].numpy().reshape(-1)  # a view: only what is sampled is read
        digest.update(f'{key} {tensors[key].shape} {tensors[key].dtype}'.encode())
        starts = np.linspace(0, max(len(flat) - _SAMPLE, 0), _SAMPLES).astype(np.int64)
        for start in np.unique(starts):
            digest.update(flat[start : start + _SAMPLE].tobytes())
