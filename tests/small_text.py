"""A small T5 folder, made here: a tokenizer trained on a few lines, and a network of random numbers."""

import functools
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import sentencepiece
from flax import nnx

from fv_jax.core.abstract_module import abstract_module
from fv_jax.models.t5 import T5, T5Config
from fv_jax.weights.layouts import t5_folder

LINES = (
    'a ladybug moves from left to right over a beach',
    'the camera glides over a quiet meadow at dawn, slowly',
    'two rabbits hop from right to left through a snowy forest',
)
SMALL = T5Config(vocab_size=50, embed_dim=12, num_layers=2, num_heads=3, head_dim=5, mlp_dim=10)


def spiece(**settings) -> bytes:
    """The contents of a spiece.model with T5's special ids, or with others."""
    model = io.BytesIO()
    ids = {'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1} | settings
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 8), model_writer=model, vocab_size=40, minloglevel=2, num_threads=1, **ids
    )
    return model.getvalue()


def random_t5(config: T5Config = SMALL, seed: int = 0) -> T5:
    """A network of random numbers."""
    graphdef, shapes = nnx.split(abstract_module(functools.partial(T5, config)))
    rng = np.random.default_rng(seed)
    return nnx.merge(graphdef, jax.tree.map(lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), x.dtype), shapes))


def make_folder(folder: Path, config: T5Config = SMALL, **kwargs) -> Path:
    """Writes a folder as Hugging Face lays it out; `kwargs` are those of `t5.save`."""
    t5_folder.save(folder, random_t5(config), **kwargs)
    (folder / 'spiece.model').write_bytes(spiece())
    return folder
