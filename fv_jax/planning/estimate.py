"""Estimates temporary memory by formula, for chips without an ahead-of-time compiler; accurate to about 50 %.

    training   gradients in the dtype of the parameters, twice with microbatches; of one microbatch, the activations
               that `remat` saves of every layer, the output of attention and the log-sum-exp of its logits among
               them, and the temporaries of one layer
    sampling   the temporaries of one layer
    VAE        five of the widest activations: libtpu's programs for 1072x1920 take four to five

The temporaries of a layer: float32 norms and gates, queries, keys, values and their gradients, the MLP's inner
activation twice, and the gathered keys and values of all tokens.
"""

import math

from fv_jax.models.dit import DiTConfig
from fv_jax.models.vae import VAEConfig

_ACTIVATIONS = 5


def dit_layer(config: DiTConfig, tokens: float, all_tokens: float) -> float:
    """Estimates the temporaries of one DiT layer in bytes per chip.

    Args:
      config: of the DiT.
      tokens: on the chip, of all its examples.
      all_tokens: of the same examples, on all chips of the context axis.
    """
    item = _itemsize(config.dtype)
    local = tokens * (4 * 4 * config.embed_dim + item * (8 * config.embed_dim + 2 * config.mlp_dim))
    return local + item * 4 * all_tokens * config.embed_dim


def saved_activations(config: DiTConfig, tokens: float) -> float:
    """Estimates the activations that all layers save for the backward pass, in bytes, for `tokens` tokens on a chip."""
    dim, inner, item = config.embed_dim, config.mlp_dim, _itemsize(config.dtype)
    dots, none = dim + 3 * dim + 3 * dim + inner, 23 * dim + 3 * inner
    features = dim + {'offload': 0, 'full': dim, 'dots': dots, 'none': none}[config.remat]
    return config.num_layers * tokens * (features * item + 4 * config.num_heads)


def vae_chunk(config: VAEConfig, shape_BFHWC: tuple[int, ...], shards: int) -> float:
    """Estimates the temporaries of a chunk of the VAE in bytes per chip.

    Args:
      config: of the VAE.
      shape_BFHWC: of the chunk's video.
      shards: the number of shards that the video is split into.
    """
    return _ACTIVATIONS * math.prod(shape_BFHWC[:4]) * config.base_channels * _itemsize(config.dtype) / shards


def _itemsize(dtype: str) -> int:
    return 2 if dtype == 'bfloat16' else 4
