"""The attention that networks call: one entry, and the kernels of each platform behind it.

    out[m] = sum_j softmax_j(q[m] . k[j] / sqrt(K)) v[j]                                  model guide 1.4

    cpu   blocked     one head and some hundred queries at a time
    tpu   splash_tpu  JAX's splash kernel
    gpu   cudnn_gpu   cuDNN's flash attention

The first two also give attention over a part of the keys, which the ring of `context_parallel` merges.

Dimensions: B batch, M tokens, J key tokens, N heads, K head size.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from fv_jax.core.array_typing import Array, Float, typed
from fv_jax.core.parallel_context import Rules
from fv_jax.kernels import blocked, cudnn_gpu, splash_tpu


class Backend(NamedTuple):
    """whole: (q_BMNK, k_BJNK, v_BJNK, num_keys) -> BMNK. part: the same, with a number of keys that may be computed, ->
    (o_BMNK, lse_BMN), float32; None where no kernel can. tile: what a chip's number of tokens should be a multiple of,
    given about how many.
    """

    whole: Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]
    part: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None
    tile: Callable[[int], int]


BACKENDS = {
    'cpu': Backend(blocked.attention, blocked.partial_attention, lambda tokens: 1),
    'tpu': Backend(splash_tpu.attention, splash_tpu.partial_attention, splash_tpu.tile),
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
    """Softmax attention of every query over the first `num_keys` keys, or all of them.

    Logits and softmax are float32; the result has the dtype of `v_BJNK`.

    Args:
      platform: whose kernel; None for that of the process's own devices.
    """
    num_keys = k_BJNK.shape[1] if num_keys is None else num_keys
    return BACKENDS[platform or jax.default_backend()].whole(q_BMNK, k_BJNK, v_BJNK, num_keys)


def portable_attention(q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: int) -> jax.Array:
    """The same of plain operations alone, in blocks on a CPU and at once elsewhere, for code that is compiled where it
    will run.
    """
    at_once = functools.partial(blocked.attention_at_once, num_keys=num_keys)
    in_blocks = functools.partial(blocked.attention, num_keys=num_keys)
    return jax.lax.platform_dependent(q_BMNK, k_BJNK, v_BJNK, cpu=in_blocks, default=at_once)


SINGLE_DEVICE = Rules(attention=attention)
PORTABLE = Rules(attention=portable_attention)
