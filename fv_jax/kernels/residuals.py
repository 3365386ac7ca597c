"""What attention saves for its backward pass besides queries, keys and values, named for remat policies."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

ATTENTION_RESIDUALS = 'attention_residuals'


def name_residuals(o_BMNK: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Names the output of attention and the log-sum-exp of its logits, and returns them.

    What is saved of the output are rows of tokens, (B, M, N K): a TPU pads heads of 64 to 128 if they come last.
    """
    o_BMD = checkpoint_name(o_BMNK.reshape(*o_BMNK.shape[:2], -1), ATTENTION_RESIDUALS)
    return o_BMD.reshape(o_BMNK.shape), checkpoint_name(lse, ATTENTION_RESIDUALS)


def is_cudnn_forward(primitive: Any) -> bool:
    """Returns whether a primitive is cuDNN's forward pass, whose results `jax.nn` does not name.

    The primitive's name is not public: where it changed, the forward pass would be computed twice (`test_remat`).
    """
    return primitive.name.startswith('dot_product_attention_fwd')
