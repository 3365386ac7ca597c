"""Attention for an NVIDIA GPU: cuDNN's flash attention (arXiv:2205.14135), through `jax.nn`.

It computes in bfloat16 or float16; float32 is left to XLA, unblocked. There is no attention over a part of the keys:
`jax.nn` rounds the log-sum-exp to bfloat16, and parts merged by it were 3 % off (jax 0.11.2, H200).

Dimensions: B batch, M tokens, J key tokens, N heads, K head size.
"""

import jax
import jax.numpy as jnp

DTYPES = (jnp.bfloat16, jnp.float16)


def attention(q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: int) -> jax.Array:
    """Computes attention over the first `num_keys` keys.

    Args:
      q_BMNK: queries.
      k_BJNK, v_BJNK: keys and values.
      num_keys: the keys after these are padding.

    Returns:
      (B, M, N, K) in the dtype of `v_BJNK`.
    """
    # `jax.nn` has no backward kernel for odd lengths.
    q, k, v = (_pad_to_even(x) for x in (q_BMNK, k_BJNK[:, :num_keys], v_BJNK[:, :num_keys]))
    lengths = None if k.shape[1] == num_keys else jnp.full(k.shape[0], num_keys, jnp.int32)
    implementation = 'cudnn' if v.dtype in DTYPES else 'xla'
    out = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation=implementation)
    return out[:, : q_BMNK.shape[1]]


def _pad_to_even(x_BMNK: jax.Array) -> jax.Array:
    return jnp.pad(x_BMNK, ((0, 0), (0, x_BMNK.shape[1] % 2), (0, 0), (0, 0)))
