"""Attention for an NVIDIA GPU: cuDNN's flash attention, through `jax.nn`.

It computes in bfloat16 or float16; float32 is left to the compiler, at once.

Dimensions: B batch, M tokens, J key tokens, N heads, K head size.
"""

import jax
import jax.numpy as jnp

DTYPES = (jnp.bfloat16, jnp.float16)


def attention(q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: int) -> jax.Array:
    """Attention over the first `num_keys` keys."""
    implementation = 'cudnn' if v_BJNK.dtype in DTYPES else 'xla'
    return jax.nn.dot_product_attention(
        q_BMNK, k_BJNK[:, :num_keys], v_BJNK[:, :num_keys], implementation=implementation
    )


def partial_attention(
    q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `blocked.partial_attention`: (o_BMNK, lse_BMN), float32."""
    lengths = (jnp.full(q_BMNK.shape[0], n, jnp.int32) for n in (q_BMNK.shape[1], num_keys))
    queries, keys = lengths
    o, lse = jax.nn.dot_product_attention(
        q_BMNK,
        k_BJNK,
        v_BJNK,
        query_seq_lengths=queries,
        key_value_seq_lengths=keys,
        implementation='cudnn' if v_BJNK.dtype in DTYPES else 'xla',
        return_residual=True,
    )
    return o.astype(jnp.float32), lse.astype(jnp.float32)
