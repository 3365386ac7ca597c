"""Attention for a TPU: JAX's splash kernel, a flash attention (arXiv:2205.14135), over all or a part of the keys.

The kernel takes heads of 64 as they are; padded to 128 they would cost twice the memory traffic for nothing. Its
backward pass is the unfused one: at 106,000 tokens on 4 chips the fused one needs 8 to 23 GiB of temporaries for
partial dQ, the unfused 3.3. Sequences are padded to whole blocks here and the padding masked; whole blocks of it are
skipped.

Dimensions: B batch, M tokens, J key tokens, N heads, K head size.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash

LANES = 128
# Larger blocks read keys and values less often; at 1024 queries reading them takes a third of the arithmetic's time or
# less on every generation from v4 to v7x, by their makers' figures. Not timed on any.
MAX_BLOCK = 1024
MAX_COMPUTE = 512  # keys whose logits exist at a time


@dataclasses.dataclass(frozen=True)
class KeyPaddingMask(splash.Mask):
    """A mask by which every query attends to the first `num_keys` keys."""

    lengths: tuple[int, int]
    num_keys: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.lengths

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        queries, keys = (np.arange(n)[i] for n, i in zip(self.lengths, index, strict=True))
        return np.broadcast_to((keys < self.num_keys)[None], (len(queries), len(keys)))


def tile(tokens: int) -> int:
    """Returns the multiple that the number of tokens per chip is padded to: the largest block with little padding."""
    return next((b for b in reversed(_powers(MAX_BLOCK)) if b <= tokens / 32), LANES)


def block_sizes(queries: int, keys: int) -> splash.BlockSizes:
    """Returns the largest blocks that divide sequences of these lengths, which are multiples of `LANES`."""
    q, kv = (max(b for b in _powers(MAX_BLOCK) if n % b == 0) for n in (queries, keys))
    compute = min(kv, MAX_COMPUTE)
    return splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=compute,
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=compute,
        block_q_dq=q,
        block_kv_dq=kv,
        use_fused_bwd_kernel=False,
    )


def attention(
    q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: int, *, interpret: bool = False
) -> jax.Array:
    """Computes attention over the first `num_keys` keys.

    Args:
      q_BMNK: queries.
      k_BJNK, v_BJNK: keys and values.
      num_keys: the keys after these are padding.
      interpret: whether to interpret the kernel, slowly, on any platform; for tests.

    Returns:
      (B, M, N, K) in the dtype of `v_BJNK`.
    """
    tokens, dtype = q_BMNK.shape[1], v_BJNK.dtype
    q_BNMK, k_BNJK, v_BNJK = _prepare(q_BMNK, k_BJNK, v_BJNK)
    lengths = q_BNMK.shape[2], k_BNJK.shape[2]
    mask = splash.FullMask(lengths) if num_keys == lengths[1] else KeyPaddingMask(lengths, num_keys)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * q_BNMK.shape[1]),
        block_sizes=block_sizes(*lengths),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    return jax.vmap(kernel)(q_BNMK, k_BNJK, v_BNJK).swapaxes(1, 2)[:, :tokens].astype(dtype)


def attention_with_lse(
    q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Computes attention over the first `num_keys` keys, and the log-sum-exp of their logits.

    Args:
      q_BMNK: queries.
      k_BJNK, v_BJNK: keys and values.
      num_keys: int32 scalar, may be traced.
      interpret: whether to interpret the kernel, slowly, on any platform; for tests.

    Returns:
      (o_BMNK, lse_BMN), float32.
    """
    tokens = q_BMNK.shape[1]
    q_BNMK, k_BNJK, v_BNJK = _prepare(q_BMNK, k_BJNK, v_BJNK)
    lengths = q_BNMK.shape[2], k_BNJK.shape[2]
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([splash.FullMask(lengths)] * q_BNMK.shape[1]),
        block_sizes=block_sizes(*lengths),
        head_shards=1,
        q_seq_shards=1,
        save_residuals=True,
        interpret=interpret,
    )
    # The number of keys is traced, and a mask must be static: queries and the first keys are segment 0, others 1.
    segments = splash.SegmentIds(
        jnp.zeros(lengths[0], jnp.int32), (jnp.arange(lengths[1]) >= num_keys).astype(jnp.int32)
    )
    o_BNMK, (lse_BNM,) = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q_BNMK, k_BNJK, v_BNJK, segments)
    o_BMNK, lse_BMN = (x.swapaxes(1, 2)[:, :tokens].astype(jnp.float32) for x in (o_BNMK, lse_BNM))
    return o_BMNK, lse_BMN


def _prepare(*qkv: jax.Array) -> tuple[jax.Array, ...]:
    """Returns scaled queries, keys and values as (B, N, M, K), with M padded to a multiple of `LANES`."""
    q, k, v = (jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES), (0, 0), (0, 0))).swapaxes(1, 2) for x in qkv)
    # The kernel does not scale. For heads of 64 this is exact in any precision: 1/8.
    return (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype), k, v


def _powers(largest: int) -> list[int]:
    return [LANES * 2**i for i in range(16) if LANES * 2**i <= largest]
