"""The attention function that networks call, and the kernels of each platform behind it.

    out[m] = sum_j softmax_j(q[m] . k[j] / sqrt(K)) v[j]                                  model guide 1.4

    cpu   blocked     one head and a few hundred queries at a time
    tpu   splash_tpu  JAX's splash kernel
    gpu   cudnn_gpu   cuDNN's flash attention

The first two can also attend to a part of the keys; the ring of `context_parallel` merges such results.

Dimensions: B batch, M tokens, J key tokens, N heads, K head size.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from fv_jax.core.array_typing import Array, Float, typed
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels import blocked, cudnn_gpu, splash_tpu


class Backend(NamedTuple):
    """The kernels of a platform.

    Attributes:
      full: (q_BMNK, k_BJNK, v_BJNK, num_keys) -> BMNK, with a static `num_keys`.
      partial: the same with a traced `num_keys` -> (o_BMNK, log-sum-exp lse_BMN), float32; None without such a kernel.
      tile: approximate number of tokens per chip -> the multiple that the number is padded to.
    """

    full: Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]
    partial: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None
    tile: Callable[[int], int]


BACKENDS = {
    'cpu': Backend(blocked.attention, blocked.attention_with_lse, lambda tokens: 1),
    'tpu': Backend(splash_tpu.attention, splash_tpu.attention_with_lse, splash_tpu.tile),
    'gpu': Backend(cudnn_gpu.attention, None, lambda tokens: 64),
}


@typed
def attention(
    q_BMNK: Float[Array, 'b m n k'],
    k_BJNK: Float[Array, 'b j n k'],
    v_BJNK: Float[Array, 'b j n k'],
    num_keys: int | None = None,
    *,
    platform: str | None = None,
) -> Float[Array, 'b m n k']:
    """Computes softmax attention of every query over the first `num_keys` keys, or all of them.

    Logits and softmax are float32.

    Args:
      q_BMNK: queries.
      k_BJNK, v_BJNK: keys and values.
      num_keys: the keys after these are padding; None attends to all.
      platform: 'cpu', 'gpu' or 'tpu'; None is that of this process's devices.

    Returns:
      (B, M, N, K) in the dtype of `v_BJNK`.
    """
    num_keys = k_BJNK.shape[1] if num_keys is None else num_keys
    return BACKENDS[platform or jax.default_backend()].full(q_BMNK, k_BJNK, v_BJNK, num_keys)


def portable_attention(q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: int) -> jax.Array:
    """Computes `attention` with plain operations only, for exported code that is compiled on the platform it runs on.

    It is blocked on a CPU, and left to the compiler elsewhere.
    """
    unblocked = functools.partial(blocked.unblocked_attention, num_keys=num_keys)
    in_blocks = functools.partial(blocked.attention, num_keys=num_keys)
    return jax.lax.platform_dependent(q_BMNK, k_BJNK, v_BJNK, cpu=in_blocks, default=unblocked)


SINGLE_DEVICE = ParallelContext(attention=attention)
PORTABLE = ParallelContext(attention=portable_attention)
