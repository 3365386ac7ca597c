"""The TPU's attention kernels, interpreted, against the float32 reference; the full cross is `fused_cases`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.kernels import fused_tpu
from tests.kernels import fused_cases

MIB = fused_cases.MIB


@pytest.mark.parametrize('case', fused_cases.pairwise(), ids=str)
def test_attention_and_gradients_equal_the_reference(case):
    found = fused_cases.errors(case)
    assert fused_cases.within_tolerances(found, case), found


def test_pairwise_cases_have_every_pair_of_values():
    cases = fused_cases.pairwise()
    assert set().union(*map(fused_cases.pairs, cases)) == set().union(*map(fused_cases.pairs, fused_cases.full_cross()))
    assert len(cases) <= 13


def test_attention_without_keys_has_no_weight():
    q = k = v = jnp.ones((1, 5, 1, 64))
    o, lse = fused_tpu.attention_with_lse(q, k, v, jnp.int32(0), options=fused_tpu.Options(MIB, interpret=True))
    assert not np.any(o) and np.all(np.asarray(lse) == -np.inf)


def test_block_sizes_divide_the_sequences():
    for queries, keys, q, kv in ((6656, 6656, 512, 512), (13312, 106496, 1024, 1024), (128, 384, 128, 128)):
        blocks = fused_tpu.choose_blocks(queries, keys, 128 * MIB)
        assert (blocks.queries, blocks.keys) == (q, kv) and blocks.keys % blocks.logits == 0
        assert blocks.logits == min(kv, 512) and fused_tpu.choose_blocks(queries, keys, 16 * MIB).logits == 128
    # Stage 1 on one chip, stage 2 over eight, four and one: little of it is padding.
    for tokens in (6466, 13_094, 26_187, 104_746):
        tile = fused_tpu.tile(tokens)
        assert tile % fused_tpu.LANES == 0 and -tokens % tile < tokens / 32
    assert fused_tpu.tile(100) == fused_tpu.LANES


@pytest.mark.parametrize(
    ('queries', 'head_dim', 'vmem', 'parts'),
    [(26_624, 64, 128, 1), (26_624, 64, 16, 1), (106_496, 64, 64, 1), (106_496, 128, 64, 2), (106_496, 64, 16, 4)],
)
def test_queries_are_divided_by_the_memory_of_a_chip(queries, head_dim, vmem, parts):
    assert fused_tpu.count_parts(queries, head_dim, vmem * MIB) == parts


def test_kernels_are_parallel_over_heads():
    """On v4 and v5p only dimensions that are parallel are divided between the two cores of a device."""
    x = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)

    def step(q, k, v, do):
        return jax.vjp(lambda *x: fused_tpu.attention(*x, 200, options=fused_tpu.Options(128 * MIB)), q, k, v)[1](do)

    text = str(jax.make_jaxpr(step)(x, x, x, x))
    kernels = [part.split(')')[0] for part in text.split('dimension_semantics=(')[1:]]
    assert len(kernels) == 2 and all(kernel.startswith("'parallel'") for kernel in kernels), kernels
