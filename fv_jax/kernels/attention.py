"""The attention function that networks call, and the kernels of each platform behind it.

    out[m] = sum_j softmax_j(q[m] . k[j] / sqrt(K)) v[j]                                  model guide 1.4

    cpu   blocked     one head and a few hundred queries at a time
    tpu   fused_tpu   two Pallas kernels, forward and backward
    gpu   cudnn_gpu   cuDNN's flash attention

The first two can also attend to a part of the keys; the ring of `context_parallel` merges such results.

Dimensions: B batch, M tokens, J key tokens, N heads, K head size.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from fv_jax.core.array_typing import Array, Float, typed
from fv_jax.core.hardware import Chip, find_chip_or_default
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels import blocked, cudnn_gpu, fused_tpu


class Backend(NamedTuple):
    """The kernels of a platform.

    Attributes:
      full: (q_BMNK, k_BJNK, v_BJNK, num_keys) -> BMNK, with a static `num_keys`.
      partial: the same with a traced `num_keys` -> (o_BMNK, log-sum-exp lse_BMN), float32; None without such a kernel.
      gradients: (q_BMNK, k_BJNK, v_BJNK, o_BMNK, lse_BMN, do_BMNK, num_keys) -> (dq_BMNK, dk_BJNK, dv_BJNK), from the
        merged results of `partial`, with a static `num_keys`; None without `partial`.
      tile: approximate number of tokens per chip -> the multiple that the number is padded to.
    """

    full: Callable[[jax.Array, jax.Array, jax.Array, int], jax.Array]
    partial: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None
    gradients: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] | None
    tile: Callable[[int], int]


def _on_cpu(chip: Chip) -> Backend:
    return Backend(blocked.attention, blocked.attention_with_lse, blocked.gradients, lambda tokens: 1)


def _on_tpu(chip: Chip) -> Backend:
    kernels = fused_tpu.attention, fused_tpu.attention_with_lse, fused_tpu.gradients
    options = fused_tpu.Options(chip.vmem)
    return Backend(*(functools.partial(kernel, options=options) for kernel in kernels), fused_tpu.tile)


def _on_gpu(chip: Chip) -> Backend:
    return Backend(cudnn_gpu.attention, None, None, lambda tokens: 64)


BACKENDS: dict[str, Callable[[Chip], Backend]] = {'cpu': _on_cpu, 'tpu': _on_tpu, 'gpu': _on_gpu}


def find_backend(device: jax.Device) -> Backend:
    """Returns the kernels for a device."""
    return BACKENDS[device.platform](find_chip_or_default(device.device_kind))


@typed
def attention(
    q_BMNK: Float[Array, 'b m n k'],
    k_BJNK: Float[Array, 'b j n k'],
    v_BJNK: Float[Array, 'b j n k'],
    num_keys: int | None = None,
    *,
    backend: Backend | None = None,
) -> Float[Array, 'b m n k']:
    """Computes softmax attention of every query over the first `num_keys` keys, or all of them.

    Logits and softmax are float32.

    Args:
      q_BMNK: queries.
      k_BJNK, v_BJNK: keys and values.
      num_keys: the keys after these are padding; None attends to all.
      backend: the kernels; None takes those for this process's devices.

    Returns:
      (B, M, N, K) in the dtype of `v_BJNK`.
    """
    num_keys = k_BJNK.shape[1] if num_keys is None else num_keys
    backend = backend or find_backend(jax.local_devices()[0])
    return backend.full(q_BMNK, k_BJNK, v_BJNK, num_keys)


def portable_attention(q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: int) -> jax.Array:
    """Computes `attention` with plain operations only, for exported code that is compiled on the platform it runs on.

    It is blocked on a CPU, and left to the compiler elsewhere.
    """
    unblocked = functools.partial(blocked.unblocked_attention, num_keys=num_keys)
    in_blocks = functools.partial(blocked.attention, num_keys=num_keys)
    return jax.lax.platform_dependent(q_BMNK, k_BJNK, v_BJNK, cpu=in_blocks, default=unblocked)


SINGLE_DEVICE = ParallelContext(attention=attention)
PORTABLE = ParallelContext(attention=portable_attention)
