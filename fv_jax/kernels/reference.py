"""Attention as the formula (arXiv:1706.03762) reads, in float32: the slow reference that other kernels are tested with.

    out[m] = sum_j softmax_j(q[m] . k[j] / sqrt(K)) v[j]                                  model guide 1.4

Dimensions: B batch, M tokens, N heads, K head size.
"""

import jax
import jax.numpy as jnp

from fv_jax.core.array_typing import Array, Float, typed


@typed
def attention(
    q_BMNK: Float[Array, 'b m n k'], k_BMNK: Float[Array, 'b j n k'], v_BMNK: Float[Array, 'b j n k']
) -> Float[Array, 'b m n k']:
    """Computes softmax attention of every query over all keys, in float32 for inputs of any dtype (arXiv:1706.03762).

    Args:
      q_BMNK: queries.
      k_BMNK, v_BMNK: keys and values.

    Returns:
      (B, M, N, K), float32.
    """
    q, k, v = (x.astype(jnp.float32) for x in (q_BMNK, k_BMNK, v_BMNK))
    with jax.default_matmul_precision('highest'):
        logits_BNMJ = jnp.einsum('bmnk,bjnk->bnmj', q, k) / jnp.sqrt(jnp.float32(q.shape[-1]))
        weights_BNMJ = jax.nn.softmax(logits_BNMJ, axis=-1)
        return jnp.einsum('bnmj,bjnk->bmnk', weights_BNMJ, v)
