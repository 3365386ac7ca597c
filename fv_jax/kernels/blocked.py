"""Attention for a CPU: one head and a few hundred queries at a time.

The logits of all heads, 72 MB for 8 heads and 1,500 tokens, cost more to move through memory than to compute. In
small blocks they stay in the cache; the backward pass recomputes them, as in flash attention (arXiv:2205.14135). It is
about twice as fast as the unblocked formula, and its memory grows with M instead of M^2.

Dimensions: B batch, M tokens, J key tokens, N heads, K head size, Q queries of a block, G blocks.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from fv_jax.kernels.residuals import ATTENTION_RESIDUALS

BLOCK_QUERIES = 512  # queries in a block; 128 to 512 are within 10 % of each other in speed


def softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Computes attention (..., Q, K), (..., J, K), (..., J, K) -> (..., Q, K) with float32 logits and softmax."""
    return jnp.einsum('...qj,...jk->...qk', jax.nn.softmax(_logits(q, k), axis=-1).astype(v.dtype), v)


def attention(q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: int) -> jax.Array:
    """Computes attention over the first `num_keys` keys.

    Args:
      q_BMNK: queries, any number M.
      k_BJNK, v_BJNK: keys and values.
      num_keys: the keys after these are padding.

    Returns:
      (B, M, N, K) in the dtype of `v_BJNK`.
    """
    heads = (x.transpose(2, 0, 1, 3) for x in (q_BMNK, k_BJNK[:, :num_keys], v_BJNK[:, :num_keys]))
    return _heads(*heads).transpose(1, 2, 0, 3)


@jax.custom_vjp
def _heads(q_NBMK: jax.Array, k_NBJK: jax.Array, v_NBJK: jax.Array) -> jax.Array:
    return _forward(q_NBMK, k_NBJK, v_NBJK)[0]


def _forward(q_NBMK: jax.Array, k_NBJK: jax.Array, v_NBJK: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Returns the output and the residuals: the inputs, and the log-sum-exp of the logits."""

    def head(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q_BMK, k_BJK, v_BJK = qkv

        def block(q_BQK: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits_BQJ = _logits(q_BQK, k_BJK)
            top_BQ = logits_BQJ.max(-1)
            weights_BQJ = jnp.exp(logits_BQJ - top_BQ[..., None])
            total_BQ = weights_BQJ.sum(-1)
            o_BQK = _product('bqj,bjk->bqk', weights_BQJ.astype(v_BJK.dtype), v_BJK) / total_BQ[..., None]
            return o_BQK.astype(v_BJK.dtype), top_BQ + jnp.log(total_BQ)

        o_GBQK, lse_GBQ = jax.lax.map(block, _split_blocks(q_BMK))
        return _merge_blocks(o_GBQK, q_BMK.shape[1]), _merge_blocks(lse_GBQ, q_BMK.shape[1])

    o_NBMK, lse_NBM = jax.lax.map(head, (q_NBMK, k_NBJK, v_NBJK))
    o_NBMK, lse_NBM = (checkpoint_name(x, ATTENTION_RESIDUALS) for x in (o_NBMK, lse_NBM))
    return o_NBMK, (q_NBMK, k_NBJK, v_NBJK, lse_NBM)


def _backward(kept: tuple[jax.Array, ...], do_NBMK: jax.Array) -> tuple[jax.Array, ...]:
    """Computes the gradients of queries, keys and values.

    With p the weights and dp = do v^T: dv = p^T do, ds = p (dp - sum_j p dp), dq = ds k, dk = ds^T q.
    """

    def head(one: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        q_BMK, k_BJK, v_BJK, lse_BM, do_BMK = one

        def block(sums: tuple[jax.Array, ...], part: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], jax.Array]:
            dk_BJK, dv_BJK = sums
            q_BQK, lse_BQ, do_BQK = part
            p_BQJ = jnp.exp(_logits(q_BQK, k_BJK) - lse_BQ[..., None])
            pdp_BQJ = p_BQJ * _product('bqk,bjk->bqj', do_BQK, v_BJK)
            ds_BQJ = (pdp_BQJ - p_BQJ * pdp_BQJ.sum(-1, keepdims=True)) * q_BQK.shape[-1] ** -0.5
            ds_BQJ = ds_BQJ.astype(q_BQK.dtype)
            dv_BJK += _product('bqj,bqk->bjk', p_BQJ.astype(v_BJK.dtype), do_BQK)
            dk_BJK += _product('bqj,bqk->bjk', ds_BQJ, q_BQK)
            return (dk_BJK, dv_BJK), _product('bqj,bjk->bqk', ds_BQJ, k_BJK)

        zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (k_BJK, v_BJK))
        # The padding of the last block adds nothing: its do is 0.
        (dk_BJK, dv_BJK), dq_GBQK = jax.lax.scan(block, zeros, tuple(map(_split_blocks, (q_BMK, lse_BM, do_BMK))))
        grads = _merge_blocks(dq_GBQK, q_BMK.shape[1]), dk_BJK, dv_BJK
        return tuple(grad.astype(x.dtype) for grad, x in zip(grads, one[:3], strict=True))

    return jax.lax.map(head, (*kept, do_NBMK))


_heads.defvjp(_forward, _backward)


def _logits(q: jax.Array, k: jax.Array) -> jax.Array:
    return _product('...qk,...jk->...qj', q, k) * q.shape[-1] ** -0.5


def _product(formula: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(formula, x, y, preferred_element_type=jnp.float32)


def _split_blocks(x_BM: jax.Array) -> jax.Array:
    """Splits (B, M, ...) into blocks (G, B, Q, ...), padded with zeros."""
    batch, tokens, *rest = x_BM.shape
    blocks = -(-tokens // BLOCK_QUERIES)
    size = -(-tokens // blocks)
    padded = jnp.pad(x_BM, ((0, 0), (0, blocks * size - tokens), *[(0, 0)] * len(rest)))
    return padded.reshape(batch, blocks, size, *rest).swapaxes(0, 1)


def _merge_blocks(x_GBQ: jax.Array, tokens: int) -> jax.Array:
    """Merges blocks (G, B, Q, ...) to (B, M, ...) without the padding."""
    x_BGQ = x_GBQ.swapaxes(0, 1)
    return x_BGQ.reshape(x_BGQ.shape[0], -1, *x_BGQ.shape[3:])[:, :tokens]


def unblocked_attention(q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: int) -> jax.Array:
    """Computes `attention` without blocks, for compilers that block it themselves."""
    q, k, v = (x.swapaxes(1, 2) for x in (q_BMNK, k_BJNK[:, :num_keys], v_BJNK[:, :num_keys]))
    return softmax_attention(q, k, v).swapaxes(1, 2)


def attention_with_lse(
    q_BMNK: jax.Array, k_BJNK: jax.Array, v_BJNK: jax.Array, num_keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes attention over the first `num_keys` keys, and the log-sum-exp of their logits.

    The result can be merged with that of other keys. It is not differentiable.

    Args:
      q_BMNK: queries.
      k_BJNK, v_BJNK: keys and values.
      num_keys: int32 scalar, may be traced. With 0 the log-sum-exp is -inf.

    Returns:
      (o_BMNK, lse_BMN), float32.
    """
    known_J = jnp.arange(k_BJNK.shape[1]) < num_keys

    def head(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        q_BMK, k_BJK, v_BJK = qkv
        logits_BMJ = jnp.where(known_J[None, None, :], _logits(q_BMK, k_BJK), -jnp.inf)
        lse_BM = jax.nn.logsumexp(logits_BMJ, axis=-1)
        weights_BMJ = jnp.exp(logits_BMJ - lse_BM[..., None])
        return jnp.einsum('bmj,bjk->bmk', weights_BMJ, v_BJK.astype(jnp.float32)), lse_BM

    o_NBMK, lse_NBM = jax.lax.map(head, tuple(x.transpose(2, 0, 1, 3) for x in (q_BMNK, k_BJNK, v_BJNK)))
    return o_NBMK.transpose(1, 2, 0, 3), lse_NBM.transpose(1, 2, 0)


def gradients(
    q_BMNK: jax.Array,
    k_BJNK: jax.Array,
    v_BJNK: jax.Array,
    o_BMNK: jax.Array,
    lse_BMN: jax.Array,
    do_BMNK: jax.Array,
    num_keys: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of queries, keys and values of attention over the first `num_keys` keys.

    Args:
      q_BMNK, k_BJNK, v_BJNK, num_keys: as of `attention`.
      o_BMNK: the output; not read.
      lse_BMN: the log-sum-exp of all logits.
      do_BMNK: the gradient of the output.
    """
    del o_BMNK
    q, k, v, do = (x.transpose(2, 0, 1, 3) for x in (q_BMNK, k_BJNK[:, :num_keys], v_BJNK[:, :num_keys], do_BMNK))
    dq, dk, dv = (x.transpose(1, 2, 0, 3) for x in _backward((q, k, v, lse_BMN.transpose(2, 0, 1)), do))
    padding = (0, 0), (0, k_BJNK.shape[1] - num_keys), (0, 0), (0, 0)
    return dq, jnp.pad(dk, padding), jnp.pad(dv, padding)
