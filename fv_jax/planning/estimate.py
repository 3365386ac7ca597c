"""Temporaries by formula, for chips that nothing here compiles for: good to about half.

    training   gradients as wide as the parameters, twice with microbatches; of one microbatch what `remat` keeps of
               every layer, and the work of one layer
    sampling   the work of one layer
    VAE        five of the widest activations: four to five are what libtpu's programs for 1072x1920 take

A layer's work: float32 norms and gates, queries, keys, values and their gradients, the MLP's inner activation twice,
and the keys and values of all tokens where they are gathered.
"""

import math

from fv_jax.models.dit import DiTConfig
from fv_jax.models.vae import VAEConfig

_ACTIVATIONS = 5


def dit_layer(config: DiTConfig, tokens: float, all_tokens: float) -> float:
    """tokens: on this chip, of all its rows; all_tokens: those of its rows, wherever they are."""
    item = _itemsize(config.dtype)
    here = tokens * (4 * 4 * config.embed_dim + item * (8 * config.embed_dim + 2 * config.mlp_dim))
    return here + item * 4 * all_tokens * config.embed_dim


def kept(config: DiTConfig, tokens: float) -> float:
    """What all layers keep for the backward pass."""
    dim, inner, item = config.embed_dim, config.mlp_dim, _itemsize(config.dtype)
    dots, none = dim + 3 * dim + 3 * dim + inner, 24 * dim + 3 * inner
    numbers = {'offload': 0, 'full': dim, 'dots': dots, 'none': none}[config.remat]
    return config.num_layers * tokens * numbers * item


def vae_chunk(config: VAEConfig, shape_BFHWC: tuple[int, ...], shards: int) -> float:
    """shape_BFHWC: of the chunk's video. shards: over which it is split."""
    return _ACTIVATIONS * math.prod(shape_BFHWC[:4]) * config.base_channels * _itemsize(config.dtype) / shards


def _itemsize(dtype: str) -> int:
    return 2 if dtype == 'bfloat16' else 4
