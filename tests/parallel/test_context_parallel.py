"""Attention over eight chips, every way, against the reference on one: forward and gradients, odd lengths, padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.core.config import ConfigError
from fv_jax.core.hardware import CPU
from fv_jax.kernels import context_parallel, fused_tpu, reference
from fv_jax.kernels.attention import BACKENDS, Backend
from fv_jax.kernels.context_cost import ContextParallelPlan, all_plans
from fv_jax.models.remat import apply_remat
from fv_jax.parallel import sharding
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.parallel.rules import Partitioner
from tests.kernels.counting import count_kernels

TOKENS, PADDED, HEADS = 50, 56, 6


def qkv(heads=HEADS):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((2, PADDED, heads, 16)), jnp.float32) for _ in range(3)]


def run(kernel, arrays):
    probe = jnp.asarray(np.random.default_rng(1).standard_normal((2, TOKENS, *arrays[0].shape[2:])), jnp.float32)

    def loss(arrays):
        o = kernel(*arrays)[:, :TOKENS]
        return jnp.sum(o * probe), o

    (_, o), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return o, *grads


@pytest.fixture(scope='module')
def expected():
    return run(lambda q, k, v: reference.attention(q, k[:, :TOKENS], v[:, :TOKENS]), qkv())


def check(axes, plan, expected):
    mesh = make_mesh(ParallelConfig(**({'data': 1} | axes)))
    sharding = jax.NamedSharding(mesh, jax.P('data', 'context', 'tensor', None))

    def kernel(q, k, v):
        return context_parallel.attention(q, k, v, TOKENS, sharding=sharding, context='context', plan=plan)

    for a, b in zip(run(kernel, [jax.device_put(x, sharding) for x in qkv()]), expected, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6 * float(jnp.abs(b).max()))


@pytest.mark.parametrize('plan', all_plans(8), ids=str)
def test_context_parallel_plans_over_eight_devices(expected, plan):
    """Six heads do not divide by four or eight: there the padding of heads is tested too."""
    check({'context': 8}, plan, expected)


@pytest.mark.parametrize('plan', [ContextParallelPlan(2, ring=False), ContextParallelPlan(1, ring=True)], ids=str)
def test_context_parallel_with_other_mesh_axes(expected, plan):
    check({'data': 2, 'context': 2, 'tensor': 2}, plan, expected)


@pytest.fixture
def interpreted(monkeypatch):
    """The TPU's kernels, interpreted, in place of those of the CPU."""
    options = fused_tpu.Options(CPU.vmem, interpret=True)
    kernels = fused_tpu.attention, fused_tpu.attention_with_lse, fused_tpu.gradients
    backend = Backend(*(functools.partial(kernel, options=options) for kernel in kernels), fused_tpu.tile)
    monkeypatch.setitem(BACKENDS, 'cpu', lambda chip: backend)


PLANS = [ContextParallelPlan(2), ContextParallelPlan(), ContextParallelPlan(ring=True)]


@pytest.mark.parametrize('plan', PLANS, ids=str)
def test_kernels_of_a_tpu_over_a_mesh(expected, plan, interpreted):
    check({'data': 2, 'context': 2, 'tensor': 2}, plan, expected)


@pytest.mark.parametrize(('plan', 'forward'), list(zip(PLANS, (1, 1, 2), strict=True)), ids=str)
def test_kernels_of_a_tpu_run_once_under_remat(plan, forward, interpreted):
    """One forward kernel, or one for each part of the keys, and one backward kernel."""
    mesh = make_mesh(ParallelConfig(data=2, context=2, tensor=2))
    sharding = jax.NamedSharding(mesh, jax.P('data', 'context', 'tensor', None))

    def layer(h, _):
        o = context_parallel.attention(h, h, h, TOKENS, sharding=sharding, context='context', plan=plan)
        return jnp.tanh(o), None

    def loss(x):
        return jnp.sum(jax.lax.scan(apply_remat(layer, 'full'), x, None, length=3)[0])

    found = count_kernels(jax.make_jaxpr(jax.grad(loss))(qkv()[0]).jaxpr)
    assert found == {'attention_forward': forward, 'attention_backward': 1}


def test_ring_attention_forward_has_no_all_gather():
    mesh = make_mesh(ParallelConfig(data=1, context=8))
    sharding = jax.NamedSharding(mesh, jax.P(None, 'context', None, None))
    texts = []
    for ring in (False, True):
        compiled = jax.jit(
            lambda q, k, v, ring=ring: context_parallel.attention(
                q, k, v, TOKENS, sharding=sharding, context='context', plan=ContextParallelPlan(ring=ring)
            ),
            in_shardings=(sharding,) * 3,
        ).lower(*qkv())
        texts.append(compiled.compile().as_text())
    assert 'all-gather' in texts[0] and 'all-gather' not in texts[1] and 'collective-permute' in texts[1]


def test_no_ring_where_no_kernel_can_do_it(monkeypatch):
    partitioner = Partitioner(make_mesh(ParallelConfig(data=1, context=8)), 'fsdp_split_frames')
    shape = 1, 104_768, 30, 64
    assert sharding.context_parallel_plan(partitioner, sharding.ContextParallelConfig(ring=True), shape, 2).ring
    without_parts = BACKENDS['cpu'](CPU)._replace(partial=None)
    monkeypatch.setitem(BACKENDS, 'cpu', lambda chip: without_parts)
    assert not sharding.context_parallel_plan(partitioner, sharding.ContextParallelConfig(), shape, 2).ring
    with pytest.raises(ConfigError, match='ring_attention=True: no kernel for a cpu'):
        sharding.context_parallel_plan(partitioner, sharding.ContextParallelConfig(ring=True), shape, 2)
