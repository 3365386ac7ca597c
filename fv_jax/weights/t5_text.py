"""T5 folders as text encoders: tokenizer, network and fingerprint."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fv_jax.core import config as config_lib
from fv_jax.core.checks import require
from fv_jax.core.hashing import fingerprint
from fv_jax.text import tokenizer
from fv_jax.text.encoder import TextConfig, TextEncoderFingerprint, TextEncoderKind
from fv_jax.text.t5_encoder import T5Encoder
from fv_jax.text.tokenizer import Tokenizer
from fv_jax.weights.layouts import t5_folder
from fv_jax.weights.layouts.key_table import Tensors

SPIECE = 'spiece.model'
_SAMPLES, _SAMPLE = 16, 256  # parts of a tensor that the fingerprint reads, and elements of each


def open_folder(config: TextConfig) -> T5Encoder:
    """The T5 in a folder.

    Raises:
      FileNotFoundError: a file is not in the folder.
      ValueError: the folder does not hold a whole T5 v1.1 and its tokenizer.
    """
    folder = Path(config.encoder)
    require((folder / SPIECE).is_file(), f'{folder}: holds no {SPIECE}, the tokenizer', FileNotFoundError)
    tokens = Tokenizer.open(folder / SPIECE, _length(config))
    sizes = t5_folder.read_config(folder)
    require(
        tokens.vocab_size <= sizes.vocab_size,
        f'{folder}: the tokenizer has {tokens.vocab_size} ids and the network {sizes.vocab_size}; they are not '
        'of one model',
    )
    model = t5_folder.load(folder, dtype=config.dtype, param_dtype=config.dtype)
    return T5Encoder(model, tokens, read_fingerprint(config), masked=config.masked)


def read_fingerprint(config: TextConfig) -> TextEncoderFingerprint:
    """Names a T5 folder and how it is run.

    A hash of the sizes in config.json, of the whole tokenizer, of `length` and `masked`, and of every encoder tensor's
    name, shape, dtype and 16 parts of 256 values, evenly spread. How the tensors are spread over files does not matter,
    nor what T5 computes in. A change of a few values between the parts goes unseen: the fingerprint tells models apart,
    it does not guard against damage.
    """
    folder, sizes = Path(config.encoder), t5_folder.read_config(config.encoder)
    run = {'sizes': config_lib.to_dict(sizes), 'length': _length(config), 'masked': config.masked}
    spiece = (folder / SPIECE).read_bytes()
    digest = fingerprint([json.dumps(run, sort_keys=True), spiece, *_sampled(t5_folder.read_tensors(folder))])
    return TextEncoderFingerprint(digest, _length(config), sizes.embed_dim)


def _length(config: TextConfig) -> int:
    return config.length or tokenizer.OFFICIAL_LENGTH


def _sampled(tensors: Tensors) -> Iterator[str | bytes]:
    for key in sorted(tensors):
        flat = tensors[key].numpy().reshape(-1)  # a view: only what is sampled is read
        yield f'{key} {tensors[key].shape} {tensors[key].dtype}'
        starts = np.linspace(0, max(len(flat) - _SAMPLE, 0), _SAMPLES).astype(np.int64)
        for start in np.unique(starts):
            yield flat[start : start + _SAMPLE].tobytes()


KIND = TextEncoderKind(open_folder, read_fingerprint, options=frozenset({'length', 'masked', 'dtype'}), online=False)
