"""Attention for a TPU, over all or a part of the keys: the kernels of `fused_tpu_kernels`, and the arrays around them.

Sequences are padded to whole vectors here and the padding masked; whole blocks of it are skipped. Queries are scaled
outside the kernels. The backward pass keeps the float32 gradients of a head's queries in the vector memory (VMEM): more
queries than fit are divided into equal parts, and the gradients of keys and values of the parts are added.

Dimensions: B batch, M tokens, J key tokens, N heads, K head size, H batch x heads.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fv_jax.kernels import fused_tpu_kernels as kernels
from fv_jax.kernels.layout import tokens_last, tokens_second
from fv_jax.kernels.residuals import name_residuals

LANES = 128
MIB = 2**20
# Larger blocks read keys and values less often; at 1024 queries reading them takes a third of the arithmetic's time or
# less on every generation from v4 to v7x, by their makers' figures. Not timed on any.
MAX_BLOCK = 1024
MAX_LOGITS = 512  # keys whose logits exist at a time
SMALL_VMEM = 32 * MIB  # with less, the logits of 128 keys
SMALL_MAX_LOGITS = 128


class Options(NamedTuple):
    """How the kernels run.

    Attributes:
      vmem: bytes of VMEM of a core, of which three quarters are used.
      interpret: whether to interpret the kernels, slowly, on any platform; for tests.
    """

    vmem: int
    interpret: bool = False


def tile(tokens: int) -> int:
    """Returns the multiple that the number of tokens per chip is padded to: the largest block with little padding."""
    return next((b for b in reversed(_powers(MAX_BLOCK)) if b <= tokens / 32), LANES)


def choose_blocks(queries: int, keys: int, vmem: int) -> kernels.Blocks:
    """Returns the largest blocks that divide sequences of these lengths, which are multiples of `LANES`."""
    blocks = (max(b for b in _powers(MAX_BLOCK) if n % b == 0) for n in (queries, keys))
    logits = MAX_LOGITS if vmem >= SMALL_VMEM else SMALL_MAX_LOGITS
    block_queries, block_keys = blocks
    return kernels.Blocks(block_queries, block_keys, min(block_keys, logits), vmem * 3 // 4)


def count_parts(queries: int, head_dim: int, vmem: int) -> int:
    """Returns the number of equal parts that the backward pass divides the queries of a head into.

    The float32 gradients of a part have half of the VMEM.

    Args:
      queries: a multiple of `LANES`.
      head_dim: K.
      vmem: bytes of VMEM of a core.
    """
    vectors = queries // LANES
    fits = (n for n in range(1, vectors + 1) if vectors % n == 0 and 4 * head_dim * queries // n <= vmem // 2)
    return next(fits)


def attention(q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: int, *, options: Options) -> jax.Array:
    """Computes attention over the first `num_keys` keys.

    Args:
      q_BMNK: queries.
      k_BJNK, v_BJNK: keys and values.
      num_keys: the keys after these are padding.
      options: how the kernels run.

    Returns:
      (B, M, N, K) in the dtype of `v_BJNK`.
    """
    o_BMNK = _attend(*_prepare(q_BMNK, k_BJNK, v_BJNK), jnp.int32(num_keys), options)
    return o_BMNK[:, : q_BMNK.shape[1]].astype(v_BJNK.dtype)


def attention_with_lse(
    q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: jax.Array, *, options: Options
) -> tuple[jax.Array, jax.Array]:
    """Computes attention over the first `num_keys` keys, and the log-sum-exp of their logits.

    Args:
      q_BMNK: queries.
      k_BJNK, v_BJNK: keys and values.
      num_keys: int32 scalar, may be traced.
      options: how the kernels run.

    Returns:
      (o_BMNK, lse_BMN), float32.
    """
    arrays = _prepare(q_BMNK, k_BJNK, v_BJNK)
    o_BNKM, lse_BNM = _forward_kernel(*arrays, num_keys, jnp.float32, options)
    tokens = q_BMNK.shape[1]
    return tokens_second(o_BNKM)[:, :tokens], lse_BNM.swapaxes(1, 2)[:, :tokens]


def gradients(
    q_BMNK: jax.Array,
    k_BJNK: jax.Array,
    v_BJNK: jax.Array,
    o_BMNK: jax.Array,
    lse_BMN: jax.Array,
    do_BMNK: jax.Array,
    num_keys: int,
    *,
    options: Options,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of queries, keys and values.

    Args:
      q_BMNK, k_BJNK, v_BJNK, num_keys: as of `attention`.
      o_BMNK, lse_BMN: the output, and the log-sum-exp of all logits.
      do_BMNK: the gradient of the output.
      options: how the kernels run.
    """
    arrays, pull = jax.vjp(_prepare, q_BMNK, k_BJNK, v_BJNK)
    o_BMNK, lse_BMN, do_BMNK = (_pad(x) for x in (o_BMNK, lse_BMN, do_BMNK))
    return pull(_backward_kernel(*arrays, o_BMNK, lse_BMN.swapaxes(1, 2), do_BMNK, jnp.int32(num_keys), options))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    q_BNKM: jax.Array, k_BNKJ: jax.Array, v_BNKJ: jax.Array, num_keys: jax.Array, options: Options
) -> jax.Array:
    return _forward(q_BNKM, k_BNKJ, v_BNKJ, num_keys, options)[0]


def _forward(q_BNKM, k_BNKJ, v_BNKJ, num_keys, options: Options):
    o_BNKM, lse_BNM = _forward_kernel(q_BNKM, k_BNKJ, v_BNKJ, num_keys, q_BNKM.dtype, options)
    o_BMNK, lse_BNM = name_residuals(tokens_second(o_BNKM), lse_BNM)
    return o_BMNK, (q_BNKM, k_BNKJ, v_BNKJ, num_keys, o_BMNK, lse_BNM)


def _backward(options: Options, kept, do_BMNK: jax.Array):
    q_BNKM, k_BNKJ, v_BNKJ, num_keys, o_BMNK, lse_BNM = kept
    return *_backward_kernel(q_BNKM, k_BNKJ, v_BNKJ, o_BMNK, lse_BNM, do_BMNK, num_keys, options), None


_attend.defvjp(_forward, _backward)


def _forward_kernel(q_BNKM, k_BNKJ, v_BNKJ, num_keys, dtype, options: Options) -> tuple[jax.Array, jax.Array]:
    """Computes (o_BNKM, lse_BNM)."""
    o_HKM, lse_HM = kernels.forward(
        *(_merge_heads(x) for x in (q_BNKM, k_BNKJ, v_BNKJ)),
        num_keys,
        blocks=choose_blocks(q_BNKM.shape[3], k_BNKJ.shape[3], options.vmem),
        dtype=dtype,
        interpret=options.interpret,
    )
    return o_HKM.reshape(q_BNKM.shape), lse_HM.reshape(*q_BNKM.shape[:2], -1)


def _backward_kernel(
    q_BNKM, k_BNKJ, v_BNKJ, o_BMNK, lse_BNM, do_BMNK, num_keys, options: Options
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes (dq_BNKM, dk_BNKJ, dv_BNKJ)."""
    do_BMNK = do_BMNK.astype(q_BNKM.dtype)
    # Not a matrix product, which a TPU would round to bfloat16.
    d_BNM = (o_BMNK.astype(jnp.float32) * do_BMNK.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    keys, values = _merge_heads(k_BNKJ), _merge_heads(v_BNKJ)
    of_queries = [_merge_heads(x) for x in (q_BNKM, tokens_last(do_BMNK), lse_BNM, d_BNM)]
    size, queries = of_queries[0].shape[1:]
    parts = count_parts(queries, size, options.vmem)
    kernel = functools.partial(
        kernels.backward,
        blocks=choose_blocks(queries // parts, keys.shape[2], options.vmem),
        dtype=keys.dtype if parts == 1 else jnp.float32,
        interpret=options.interpret,
    )
    grads = [
        kernel(q, keys, values, do, lse, d, num_keys)
        for q, do, lse, d in zip(*(jnp.split(x, parts, axis=-1) for x in of_queries), strict=True)
    ]
    dq, dk, dv = zip(*grads, strict=True)
    sums = jnp.concatenate(dq, axis=-1), sum(dk[1:], dk[0]), sum(dv[1:], dv[0])
    return tuple(x.reshape(y.shape).astype(y.dtype) for x, y in zip(sums, (q_BNKM, k_BNKJ, v_BNKJ), strict=True))


def _prepare(*qkv_BMNK: jax.Array) -> tuple[jax.Array, ...]:
    """Returns scaled queries, keys and values as (B, N, K, M), with M padded to a multiple of `LANES`."""
    q, k, v = (tokens_last(_pad(x)) for x in qkv_BMNK)
    # For heads of 64 this is exact in any precision: 1/8.
    return (q.astype(jnp.float32) * q.shape[2] ** -0.5).astype(q.dtype), k, v


def _pad(x_BM: jax.Array) -> jax.Array:
    return jnp.pad(x_BM, ((0, 0), (0, -x_BM.shape[1] % LANES), *[(0, 0)] * (x_BM.ndim - 2)))


def _merge_heads(x_BN: jax.Array) -> jax.Array:
    return x_BN.reshape(-1, *x_BN.shape[2:])


def _powers(largest: int) -> list[int]:
    return [LANES * 2**i for i in range(16) if LANES * 2**i <= largest]
