"""The two kernels of attention for a TPU: a flash attention (arXiv:2205.14135), and its backward pass in one kernel.

With logits s = k^T q, l = log sum_j exp(s_j), p = exp(s - l) and d = sum over channels of do o:

    forward    o = v p
    backward   dv = do p^T,   ds = p (v^T do - d),   dk = q ds^T,   dq = k ds

Splash, the kernel in JAX, needs two kernels for the backward pass, each of which computes s and p. One kernel is enough
where the float32 sum of dq over all blocks of keys fits the vector memory (VMEM) while dk and dv of a block of keys are
summed: context parallelism makes the queries of a device few. Nothing partial is in HBM.

All arrays have tokens last, so that heads of 64 are not padded to the 128 lanes of a vector. Logits are (keys,
queries): what belongs to a query is a row, which is broadcast and reduced over sublanes.

Dimensions: H batch x heads, K head size, M queries, J keys.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


class Blocks(NamedTuple):
    """Sizes of the blocks that a kernel works on.

    Attributes:
      queries, keys: of a block; they divide M and J.
      logits: the keys whose logits exist at a time; it divides `keys`.
      vmem: bytes of VMEM that the compiler may use for the kernel.
    """

    queries: int
    keys: int
    logits: int
    vmem: int


# `jax.checkpoint` drops a call of `jit` whose results are saved from what it recomputes; a `pallas_call` it would keep.
@functools.partial(jax.jit, static_argnames=('blocks', 'dtype', 'interpret'))
def forward(
    q_HKM: jax.Array,
    k_HKJ: jax.Array,
    v_HKJ: jax.Array,
    num_keys: jax.Array,
    *,
    blocks: Blocks,
    dtype: jax.typing.DTypeLike,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Computes attention over the first `num_keys` keys.

    Args:
      q_HKM: scaled queries.
      k_HKJ, v_HKJ: keys and values.
      num_keys: int32 scalar, may be traced.
      blocks: sizes of blocks.
      dtype: of the output.
      interpret: whether to interpret the kernel, on any platform.

    Returns:
      (o_HKM, lse_HM), the second float32. Without keys they are 0 and -inf.
    """
    (heads, size, queries), keys = q_HKM.shape, k_HKJ.shape[2]
    rows = pl.BlockSpec((None, size, blocks.queries), lambda h, i, j, num: (h, 0, i))
    # A block of padding is not fetched.
    columns = pl.BlockSpec((None, size, blocks.keys), lambda h, i, j, num: (h, 0, _clip(j, num, blocks)))
    vector = pl.BlockSpec((None, 1, blocks.queries), lambda h, i, j, num: (h, 0, i))
    grid = heads, queries // blocks.queries, keys // blocks.keys
    o_HKM, lse_H1M = pl.pallas_call(
        functools.partial(_forward_kernel, blocks=blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[rows, columns, columns],
            out_specs=[rows, vector],
            scratch_shapes=[pltpu.VMEM((n, blocks.queries), jnp.float32) for n in (1, 1, size)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q_HKM.shape, dtype),
            jax.ShapeDtypeStruct((heads, 1, queries), jnp.float32),
        ],
        compiler_params=_compiler_params(('parallel', 'parallel', 'arbitrary'), blocks),
        cost_estimate=_cost(2, heads * size * (2 * queries + 2 * keys * grid[1]), q_HKM, keys),
        name='attention_forward',
        interpret=interpret,
    )(num_keys.reshape(1), q_HKM, k_HKJ, v_HKJ)
    return o_HKM, lse_H1M[:, 0]


def _forward_kernel(num_ref, q_ref, k_ref, v_ref, o_ref, lse_ref, top_ref, total_ref, sum_ref, *, blocks):
    """Adds a block of keys to the softmax of a block of queries: its maximum, its total and the sum of values."""
    j = pl.program_id(2)

    @pl.when(j == 0)
    def _():
        top_ref[...] = jnp.full_like(top_ref, -jnp.inf)
        total_ref[...] = jnp.zeros_like(total_ref)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    def add(masked: bool) -> None:
        def logits(start: int) -> jax.Array:
            return _product(k_ref[:, pl.ds(start, blocks.logits)].T, q_ref[...])

        # The products of the next logits do not wait for the softmax of these.
        following = logits(0)
        for start in range(0, blocks.keys, blocks.logits):
            s, part = following, pl.ds(start, blocks.logits)
            if start + blocks.logits < blocks.keys:
                following = logits(start + blocks.logits)
            if masked:
                # Of the first keys of a block at least one is no padding, so that the maximum is finite.
                s = jnp.where(_key_index(s, j * blocks.keys + start) < num_ref[0], s, -jnp.inf)
            before = top_ref[...]
            top = jnp.maximum(before, s.max(0, keepdims=True))
            p, decay = jnp.exp(s - top), jnp.exp(before - top)
            top_ref[...] = top
            total_ref[...] = decay * total_ref[...] + p.sum(0, keepdims=True)
            # Not rounded to bfloat16 here: the matrix unit does it, and the vector unit has less to do.
            sum_ref[...] = decay * sum_ref[...] + _product(v_ref[:, part].astype(jnp.float32), p)

    _on_blocks_with_keys(add, j, num_ref[0], blocks)

    @pl.when(j == pl.num_programs(2) - 1)
    def _():
        total = total_ref[...]
        o_ref[...] = (sum_ref[...] / jnp.where(total == 0, 1, total)).astype(o_ref.dtype)
        lse_ref[...] = top_ref[...] + jnp.log(total)


@functools.partial(jax.jit, static_argnames=('blocks', 'dtype', 'interpret'))
def backward(
    q_HKM: jax.Array,
    k_HKJ: jax.Array,
    v_HKJ: jax.Array,
    do_HKM: jax.Array,
    lse_HM: jax.Array,
    d_HM: jax.Array,
    num_keys: jax.Array,
    *,
    blocks: Blocks,
    dtype: jax.typing.DTypeLike,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes the gradients of queries, keys and values.

    Args:
      q_HKM, k_HKJ, v_HKJ, num_keys: as of `forward`.
      do_HKM: the gradient of the output.
      lse_HM: the log-sum-exp of the logits, of `forward`.
      d_HM: the sum over channels of the output times its gradient, float32.
      blocks: sizes of blocks; `vmem` has room for M K float32 sums besides them.
      dtype: of the gradients of keys and values.
      interpret: whether to interpret the kernel, on any platform.

    Returns:
      (dq_HKM, dk_HKJ, dv_HKJ), the first in the dtype of `q_HKM`.
    """
    (heads, size, queries), keys = q_HKM.shape, k_HKJ.shape[2]
    rows = pl.BlockSpec((None, size, blocks.queries), lambda h, j, i, num: (h, 0, i))
    columns = pl.BlockSpec((None, size, blocks.keys), lambda h, j, i, num: (h, 0, _clip(j, num, blocks)))
    vector = pl.BlockSpec((None, 1, blocks.queries), lambda h, j, i, num: (h, 0, i))
    grid = heads, keys // blocks.keys, queries // blocks.queries
    # The block of dq stays where it is until the last keys, so that each is written once.
    dq = pl.BlockSpec((None, size, blocks.queries), lambda h, j, i, num: (h, 0, jnp.where(j == grid[1] - 1, i, 0)))
    dkv = pl.BlockSpec((None, size, blocks.keys), lambda h, j, i, num: (h, 0, j))
    return pl.pallas_call(
        functools.partial(_backward_kernel, blocks=blocks),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[rows, columns, columns, rows, vector, vector],
            out_specs=[dq, dkv, dkv],
            scratch_shapes=[
                pltpu.VMEM((grid[2], size, blocks.queries), jnp.float32),
                *[pltpu.VMEM((blocks.keys, size), jnp.float32)] * 2,
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(q_HKM.shape, q_HKM.dtype),
            *[jax.ShapeDtypeStruct(k_HKJ.shape, dtype)] * 2,
        ],
        # Heads are independent: where a device has two cores, each takes half of them.
        compiler_params=_compiler_params(('parallel', 'arbitrary', 'arbitrary'), blocks),
        cost_estimate=_cost(5, heads * size * (4 * keys + queries * (1 + 2 * grid[1])), q_HKM, keys),
        name='attention_backward',
        interpret=interpret,
    )(num_keys.reshape(1), q_HKM, k_HKJ, v_HKJ, do_HKM, lse_HM[:, None], d_HM[:, None])


def _backward_kernel(
    num_ref, q_ref, k_ref, v_ref, do_ref, lse_ref, d_ref, dq_ref, dk_ref, dv_ref, dq_sum, dk_sum, dv_sum, *, blocks
):
    """Adds the gradients of a block of queries and a block of keys. `dk_sum` and `dv_sum` are (keys, K)."""
    j, i = pl.program_id(1), pl.program_id(2)

    @pl.when(i == 0)
    def _():
        dk_sum[...] = jnp.zeros_like(dk_sum)
        dv_sum[...] = jnp.zeros_like(dv_sum)

    @pl.when(j == 0)
    def _():
        dq_sum[i] = jnp.zeros(dq_sum.shape[1:], jnp.float32)

    def add(masked: bool) -> None:
        for start in range(0, blocks.keys, blocks.logits):
            part = pl.ds(start, blocks.logits)
            q, k, v, do = q_ref[...], k_ref[:, part], v_ref[:, part], do_ref[...]
            s = _product(k.T, q)
            p = jnp.exp(s - lse_ref[...])
            if masked:
                p = jnp.where(_key_index(s, j * blocks.keys + start) < num_ref[0], p, 0)
            dv_sum[part, :] += _product(p.astype(do.dtype), do.T)
            ds = (p * (_product(v.T, do) - d_ref[...])).astype(q.dtype)
            dk_sum[part, :] += _product(ds, q.T)
            dq_sum[i] += _product(k, ds)

    _on_blocks_with_keys(add, j, num_ref[0], blocks)

    @pl.when(i == pl.num_programs(2) - 1)
    def _():
        dk_ref[...] = dk_sum[...].T.astype(dk_ref.dtype)
        dv_ref[...] = dv_sum[...].T.astype(dv_ref.dtype)

    @pl.when(j == pl.num_programs(1) - 1)
    def _():
        dq_ref[...] = dq_sum[i].astype(dq_ref.dtype)


def _on_blocks_with_keys(add, j, num_keys, blocks: Blocks) -> None:
    """Calls `add(masked)` unless block `j` of keys is all padding; masked where a part of it is."""
    first, end = j * blocks.keys, (j + 1) * blocks.keys
    pl.when(end <= num_keys)(functools.partial(add, False))
    pl.when(jnp.logical_and(first < num_keys, num_keys < end))(functools.partial(add, True))


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, y, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)


def _key_index(s: jax.Array, first: jax.Array) -> jax.Array:
    return first + jax.lax.broadcasted_iota(jnp.int32, s.shape, 0)


def _clip(j: jax.Array, num_ref, blocks: Blocks) -> jax.Array:
    """Returns the index of block `j` of keys, and for a block of padding that of the last one with keys."""
    # Not `//`: its lowering asks which TPU is attached.
    return jnp.minimum(j, jax.lax.div(jnp.maximum(num_ref[0] - 1, 0), jnp.int32(blocks.keys)))


def _compiler_params(dimensions: tuple[str, ...], blocks: Blocks) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=dimensions, vmem_limit_bytes=blocks.vmem)


def _cost(products: int, values: int, q_HKM: jax.Array, keys: int) -> pl.CostEstimate:
    """Returns the work of a kernel with so many matrix products, which reads and writes so many values."""
    heads, size, queries = q_HKM.shape
    logits = heads * queries * keys
    return pl.CostEstimate(
        flops=2 * products * logits * size, transcendentals=logits, bytes_accessed=values * q_HKM.dtype.itemsize
    )
