"""The attention that networks call: one entry, `attention`.

    out[m] = sum_j softmax_j(q[m] . k[j] / sqrt(K)) v[j]                                  FACTS 1.4

On a CPU the logits of all heads, 72 MB for 8 heads and 1,500 tokens, cost more to move through memory than to
compute. There the work is cut into one head and some hundred queries at a time, small enough for the cache, and the
backward pass computes the logits again rather than keep them: about twice as fast as the formula at once, and memory
that grows with M instead of M^2. Elsewhere the formula is left to the compiler.

Dimensions: B batch, M tokens, J key tokens, N heads, K head size, Q queries of a block, G blocks.
"""

import jax
import jax.numpy as jnp

from fv_jax.core.array_typing import Array, Float, typed
from fv_jax.core.rules import Rules

CPU_QUERIES = 512  # at a time; 128 to 512 are within 10 % of each other


@typed
def attention(
    q_BMNK: Float[Array, 'b m n k'], k_BMNK: Float[Array, 'b j n k'], v_BMNK: Float[Array, 'b j n k']
) -> Float[Array, 'b m n k']:
    """Softmax attention of every query over all keys, without a mask.

    Logits and softmax are float32; the result has the dtype of `v_BMNK`.
    """
    return jax.lax.platform_dependent(q_BMNK, k_BMNK, v_BMNK, cpu=_in_blocks, default=_at_once)


def _softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """(..., Q, K), (..., J, K), (..., J, K) -> (..., Q, K)."""
    scale = q.shape[-1] ** -0.5
    logits = jnp.einsum('...qk,...jk->...qj', q, k, preferred_element_type=jnp.float32) * scale
    return jnp.einsum('...qj,...jk->...qk', jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)


def _at_once(q_BMNK: jax.Array, k_BMNK: jax.Array, v_BMNK: jax.Array) -> jax.Array:
    q, k, v = (x.swapaxes(1, 2) for x in (q_BMNK, k_BMNK, v_BMNK))
    return _softmax_attention(q, k, v).swapaxes(1, 2)


def _in_blocks(q_BMNK: jax.Array, k_BMNK: jax.Array, v_BMNK: jax.Array) -> jax.Array:
    batch, tokens, _, head_dim = q_BMNK.shape
    blocks = -(-tokens // CPU_QUERIES)
    size = -(-tokens // blocks)
    block = jax.checkpoint(_softmax_attention, prevent_cse=False)

    def head(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        q_BMK, k_BJK, v_BJK = qkv
        padded = jnp.pad(q_BMK, ((0, 0), (0, blocks * size - tokens), (0, 0)))
        q_GBQK = padded.reshape(batch, blocks, size, head_dim).swapaxes(0, 1)
        o_GBQK = jax.lax.map(lambda q_BQK: block(q_BQK, k_BJK, v_BJK), q_GBQK)
        return o_GBQK.swapaxes(0, 1).reshape(padded.shape)[:, :tokens]

    o_NBMK = jax.lax.map(head, tuple(x.transpose(2, 0, 1, 3) for x in (q_BMNK, k_BMNK, v_BMNK)))
    return o_NBMK.transpose(1, 2, 0, 3)


SINGLE_DEVICE = Rules(attention=attention)
