"""T5 folders as text encoders: tokenizer, network and fingerprint."""

import json
from collections.abc import Iterator

import numpy as np

from fv_jax.core import config as config_lib
from fv_jax.core.checks import require
from fv_jax.core.hashing import fingerprint
from fv_jax.core.hub import weights_path
from fv_jax.text import tokenizer
from fv_jax.text.encoder import TextConfig, TextEncoderFingerprint, TextEncoderKind
from fv_jax.text.t5_encoder import T5Encoder
from fv_jax.text.tokenizer import Tokenizer
from fv_jax.weights.layouts import t5_folder
from fv_jax.weights.layouts.key_table import Tensors

SPIECE = 'spiece.model'
_SAMPLES, _SAMPLE = 16, 256  # samples of a tensor that the fingerprint reads, and elements of each


def open_folder(config: TextConfig) -> T5Encoder:
    """Opens the T5 in a folder.

    Raises:
      FileNotFoundError: a file is missing from the folder.
      ValueError: not a complete T5 v1.1 with its tokenizer.
    """
    folder = weights_path(config.encoder)
    require((folder / SPIECE).is_file(), f'{folder}: has no {SPIECE}, the tokenizer', FileNotFoundError)
    tokens = Tokenizer.open(folder / SPIECE, _length(config))
    sizes = t5_folder.read_config(folder)
    require(
        tokens.vocab_size <= sizes.vocab_size,
        f'{folder}: the tokenizer has {tokens.vocab_size} ids, the network {sizes.vocab_size}; use the files '
        'of one model',
    )
    model = t5_folder.load(folder, dtype=config.dtype, param_dtype=config.dtype)
    return T5Encoder(model, tokens, read_fingerprint(config), masked=config.masked)


def read_fingerprint(config: TextConfig) -> TextEncoderFingerprint:
    """Computes the fingerprint of a T5 folder and of how it is run.

    It is a hash of the sizes in config.json, of the tokenizer, of `length` and `masked`, and of every encoder tensor's
    name, shape, dtype and 16 evenly spaced samples of 256 values. It depends neither on how tensors are split into
    files nor on the compute dtype. It distinguishes models; a change of a few values between the samples goes
    unnoticed.
    """
    folder = weights_path(config.encoder)
    sizes = t5_folder.read_config(folder)
    run = {'sizes': config_lib.to_dict(sizes), 'length': _length(config), 'masked': config.masked}
    spiece = (folder / SPIECE).read_bytes()
    digest = fingerprint([json.dumps(run, sort_keys=True), spiece, *_sample_tensors(t5_folder.read_tensors(folder))])
    return TextEncoderFingerprint(digest, _length(config), sizes.embed_dim)


def _length(config: TextConfig) -> int:
    return config.length or tokenizer.OFFICIAL_LENGTH


def _sample_tensors(tensors: Tensors) -> Iterator[str | bytes]:
    for key in sorted(tensors):
        flat = tensors[key].numpy().reshape(-1)  # a view: only the samples are read
        yield f'{key} {tensors[key].shape} {tensors[key].dtype}'
        starts = np.linspace(0, max(len(flat) - _SAMPLE, 0), _SAMPLES).astype(np.int64)
        for start in np.unique(starts):
            yield flat[start : start + _SAMPLE].tobytes()


KIND = TextEncoderKind(open_folder, read_fingerprint, options=frozenset({'length', 'masked', 'dtype'}), online=False)
