"""Attention over a sequence whose tokens are spread over a mesh axis of c chips.

    out[m] = sum_j softmax_j(q[m] . k[j] / sqrt(K)) v[j],    m of one chip, j of all             model guide 1.4

Ring attention is arXiv:2310.01889, Ulysses arXiv:2309.14509, both at once arXiv:2405.07719.

Text and video are one sequence, cut into equal parts, so that every chip has as much to do; padding is at its end.

    gather   every chip gathers all keys and values
    ring     keys and values travel from chip to chip while what is there is attended to; with o_i and
             l_i = log sum_j exp(logit_j) of a part of the keys, out = sum_i exp(l_i - l) o_i, l = log sum_i exp(l_i)
    heads    (Ulysses) groups of u neighbours exchange tokens for heads: each has 1/u of the heads for the tokens of the
             group; u need not divide the heads, which are padded. Then gather or ring between the c / u groups

The ring goes forward only. Backwards it is the gather's transpose, which sums the gradients of keys and values and
leaves every chip its own; it computes the forward pass once more. `context_cost` knows this.

Dimensions: B batch, M tokens, N heads, K head size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fv_jax.kernels.attention import BACKENDS
from fv_jax.kernels.context_cost import Method

GROUP = 'heads_group'  # the part of the context axis along which heads are exchanged


def attention(
    q_BMNK: jax.Array,
    k_BMNK: jax.Array,
    v_BMNK: jax.Array,
    num_tokens: int,
    *,
    sharding: NamedSharding,
    context: str,
    method: Method,
) -> jax.Array:
    """Attention over the first `num_tokens` keys of sequences that live as `sharding` says.

    Args:
      q_BMNK, k_BMNK, v_BMNK: global arrays. Batch, tokens and heads may each be split; of the mesh axes, tokens are
        split over `context` only.
      num_tokens: what comes after is padding.
      sharding: of all three and of the result.
      context: the mesh axis.
      method: how; `heads` divides the chips of the axis.
    """
    mesh, spec = _grouped(sharding, context, method.heads)
    platform, groups = mesh.devices.flat[0].platform, mesh.shape[context]

    def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        heads = q.shape[2]
        if method.heads > 1:
            q, k, v = (_tokens_for_heads(x, method.heads) for x in (q, k, v))
        if groups == 1:
            o = BACKENDS[platform].whole(q, k, v, num_tokens)
        elif method.ring:
            o = _ring(q, k, v, num_tokens, context, platform)
        else:
            o = _gathered(q, k, v, num_tokens, context, platform)
        return _heads_for_tokens(o)[:, :, :heads] if method.heads > 1 else o

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return mapped(q_BMNK, k_BMNK, v_BMNK)


def _grouped(sharding: NamedSharding, context: str, size: int) -> tuple[Mesh, PartitionSpec]:
    """The same devices with the context axis cut into groups of `size` neighbours."""
    mesh = sharding.mesh
    axis = mesh.axis_names.index(context)
    shape = list(mesh.devices.shape)
    shape[axis : axis + 1] = [shape[axis] // size, size]
    names = list(mesh.axis_names)
    names.insert(axis + 1, GROUP)
    types = list(mesh.axis_types)
    types.insert(axis + 1, types[axis])
    devices = np.asarray(mesh.devices).reshape(shape)
    spec = [(context, GROUP) if context in (each, *(each or ())) else each for each in sharding.spec]
    return Mesh(devices, names, axis_types=tuple(types)), PartitionSpec(*spec)


def _tokens_for_heads(x_BMNK: jax.Array, group: int) -> jax.Array:
    """All tokens of the group for a share of the heads, padded to whole shares."""
    padded = jnp.pad(x_BMNK, ((0, 0), (0, 0), (0, -x_BMNK.shape[2] % group), (0, 0)))
    return jax.lax.all_to_all(padded, GROUP, split_axis=2, concat_axis=1, tiled=True)


def _heads_for_tokens(x_BMNK: jax.Array) -> jax.Array:
    return jax.lax.all_to_all(x_BMNK, GROUP, split_axis=1, concat_axis=2, tiled=True)


def _gathered(q: jax.Array, k: jax.Array, v: jax.Array, num_tokens: int, axis: str, platform: str) -> jax.Array:
    k, v = (jax.lax.all_gather(x, axis, axis=1, tiled=True) for x in (k, v))
    return BACKENDS[platform].whole(q, k, v, num_tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _ring(q: jax.Array, k: jax.Array, v: jax.Array, num_tokens: int, axis: str, platform: str) -> jax.Array:
    chips, here, share = jax.lax.axis_size(axis), jax.lax.axis_index(axis), k.shape[1]
    to_next = [(i, (i + 1) % chips) for i in range(chips)]
    part = BACKENDS[platform].part
    o = lse = None
    for step in range(chips):
        origin = (here - step) % chips
        # Sent on before they are used, so that they travel meanwhile.
        coming = [jax.lax.ppermute(x, axis, to_next) for x in (k, v)] if step + 1 < chips else None
        o_i, lse_i = part(q, k, v, jnp.clip(num_tokens - origin * share, 0, share))
        o, lse = (o_i, lse_i) if o is None else _merged(o, lse, o_i, lse_i)
        k, v = coming or (k, v)
    return o.astype(v.dtype)


def _merged(o: jax.Array, lse: jax.Array, o_i: jax.Array, lse_i: jax.Array) -> tuple[jax.Array, jax.Array]:
    both = jnp.logaddexp(lse, lse_i)
    return jnp.exp(lse - both)[..., None] * o + jnp.exp(lse_i - both)[..., None] * o_i, both


def _ring_forward(q, k, v, num_tokens, axis, platform):
    return _ring(q, k, v, num_tokens, axis, platform), (q, k, v)


def _ring_backward(num_tokens, axis, platform, qkv, do):
    _, pull = jax.vjp(lambda q, k, v: _gathered(q, k, v, num_tokens, axis, platform), *qkv)
    return pull(do)


_ring.defvjp(_ring_forward, _ring_backward)
