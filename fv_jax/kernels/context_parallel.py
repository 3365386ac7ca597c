"""Context parallelism: attention over a sequence whose tokens are split over a mesh axis of c chips.

    out[m] = sum_j softmax_j(q[m] . k[j] / sqrt(K)) v[j],    m of one chip, j of all             model guide 1.4

Ring attention is arXiv:2310.01889, Ulysses arXiv:2309.14509, their combination arXiv:2405.07719.

Text and video are one sequence in equal parts, so that every chip has the same amount of work; padding is at its end.

    gather   every chip gathers all keys and values
    ring     keys and values rotate from chip to chip while each chip attends to those that it has; with o_i and
             l_i = log sum_j exp(logit_j) of a part of the keys, out = sum_i exp(l_i - l) o_i, l = log sum_i exp(l_i)
    Ulysses  groups of u neighbours exchange tokens for heads: each has 1/u of the heads for the tokens of the group; u
             need not divide the heads, which are padded. Then gather or ring between the c / u groups

Only the forward pass uses the ring. The backward pass gathers keys and values, and takes the merged results as they
are; the transpose of the gather sums the gradients of keys and values and leaves every chip its own part.

Keys and values are sent with tokens last: a TPU pads heads of 64 that come last to 128, and sums over chips by a
reduce-scatter, not by an all-reduce of everything, along the last dimension alone.

Dimensions: B batch, M tokens, N heads, K head size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fv_jax.kernels.attention import Backend, find_backend
from fv_jax.kernels.context_cost import ContextParallelPlan
from fv_jax.kernels.layout import tokens_last, tokens_second
from fv_jax.kernels.residuals import name_residuals

GROUP = 'ulysses_group'  # the part of the context axis along which tokens are exchanged for heads


def attention(
    q_BMNK: jax.Array,
    k_BMNK: jax.Array,
    v_BMNK: jax.Array,
    num_tokens: int,
    *,
    sharding: NamedSharding,
    context: str,
    plan: ContextParallelPlan,
) -> jax.Array:
    """Computes attention over the first `num_tokens` keys of sharded sequences.

    Args:
      q_BMNK, k_BMNK, v_BMNK: global arrays. Batch, tokens and heads may each be split; tokens over `context` only.
      num_tokens: the tokens after these are padding.
      sharding: of all three and of the result.
      context: name of the mesh axis.
      plan: its `ulysses_degree` divides the chips of the axis.

    Returns:
      A global array of the shape of `q_BMNK`, in the dtype of `v_BMNK`.
    """
    mesh, spec = _split_context_axis(sharding, context, plan.ulysses_degree)
    backend, groups = find_backend(mesh.devices.flat[0]), mesh.shape[context]

    def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        heads = q.shape[2]
        if plan.ulysses_degree > 1:
            q, k, v = (_all_to_all_tokens_to_heads(x, plan.ulysses_degree) for x in (q, k, v))
        if groups == 1:
            o = backend.full(q, k, v, num_tokens)
        elif plan.ring:
            o = _ring(q, k, v, num_tokens, context, backend)
        else:
            o = backend.full(q, *_all_gather(k, v, context), num_tokens)
        return _all_to_all_heads_to_tokens(o)[:, :, :heads] if plan.ulysses_degree > 1 else o

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
    return mapped(q_BMNK, k_BMNK, v_BMNK)


def _split_context_axis(sharding: NamedSharding, context: str, size: int) -> tuple[Mesh, PartitionSpec]:
    """Returns the mesh and spec with the context axis split into groups of `size` neighbouring devices."""
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


def _all_to_all_tokens_to_heads(x_BMNK: jax.Array, group: int) -> jax.Array:
    """Exchanges tokens for heads: (B, M of a chip, N, K) -> (B, M of the group, N / group, K).

    The heads are padded to a multiple of the group.
    """
    padded = jnp.pad(x_BMNK, ((0, 0), (0, 0), (0, -x_BMNK.shape[2] % group), (0, 0)))
    return jax.lax.all_to_all(padded, GROUP, split_axis=2, concat_axis=1, tiled=True)


def _all_to_all_heads_to_tokens(x_BMNK: jax.Array) -> jax.Array:
    return jax.lax.all_to_all(x_BMNK, GROUP, split_axis=1, concat_axis=2, tiled=True)


def _all_gather(k_BMNK: jax.Array, v_BMNK: jax.Array, axis: str) -> tuple[jax.Array, ...]:
    """Gathers (B, M of a chip, N, K) to (B, J, N, K)."""
    arrays = map(tokens_last, (k_BMNK, v_BMNK))
    return tuple(tokens_second(jax.lax.all_gather(x, axis, axis=3, tiled=True)) for x in arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _ring(q: jax.Array, k: jax.Array, v: jax.Array, num_tokens: int, axis: str, backend: Backend) -> jax.Array:
    return _ring_forward(q, k, v, num_tokens, axis, backend)[0]


def _ring_forward(q, k, v, num_tokens: int, axis: str, backend: Backend):
    chips, here, share = jax.lax.axis_size(axis), jax.lax.axis_index(axis), k.shape[1]
    to_next = [(i, (i + 1) % chips) for i in range(chips)]
    kv = [tokens_last(x) for x in (k, v)]
    o = lse = None
    for step in range(chips):
        origin = (here - step) % chips
        # Sent before they are used, so that the transfer overlaps with the attention of this step.
        received = [jax.lax.ppermute(x, axis, to_next) for x in kv] if step + 1 < chips else None
        o_i, lse_i = backend.partial(q, *map(tokens_second, kv), jnp.clip(num_tokens - origin * share, 0, share))
        o, lse = (o_i, lse_i) if o is None else _merge(o, lse, o_i, lse_i)
        kv = received or kv
    o, lse = name_residuals(o.astype(v.dtype), lse)
    return o, (q, k, v, o, lse)


def _merge(o: jax.Array, lse: jax.Array, o_i: jax.Array, lse_i: jax.Array) -> tuple[jax.Array, jax.Array]:
    both = jnp.logaddexp(lse, lse_i)
    return jnp.exp(lse - both)[..., None] * o + jnp.exp(lse_i - both)[..., None] * o_i, both


def _ring_backward(num_tokens: int, axis: str, backend: Backend, kept, do: jax.Array):
    q, k, v, o, lse = kept
    kv, scatter = jax.vjp(functools.partial(_all_gather, axis=axis), k, v)
    dq, *dkv = backend.gradients(q, *kv, o, lse, do, num_tokens)
    return dq, *scatter(tuple(dkv))


_ring.defvjp(_ring_forward, _ring_backward)
