"""The kernels of a step with each rematerialization policy, lowered for a TPU that need not be there."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fv_jax.core.hardware import CHIPS
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels.attention import BACKENDS, attention
from fv_jax.models.dit import DiT, DiTConfig
from tests.kernels.counting import count_kernels

SMALL = DiTConfig(
    latent_channels=4, embed_dim=128, num_layers=3, num_heads=2, mlp_dim=64, cond_dim=8, text_dim=8, dtype='bfloat16'
)


@pytest.mark.parametrize('chip', ['v5e', 'v4'])
@pytest.mark.parametrize('remat', ['none', 'dots', 'full', 'offload'])
def test_a_layer_has_one_forward_and_one_backward_kernel(remat, chip):
    """Layers are the steps of a scan: a kernel of each is in the program once."""
    context = ParallelContext(attention=functools.partial(attention, backend=BACKENDS['tpu'](CHIPS[chip])))
    model = nnx.eval_shape(lambda: DiT(dataclasses.replace(SMALL, remat=remat), rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model)
    inputs = jnp.zeros((1, 2, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 5, 8)), jnp.zeros(1, jnp.int32)

    def loss(params):
        return jnp.mean(jnp.square(nnx.merge(graphdef, params)(*inputs, context=context)))

    traced = jax.jit(jax.grad(loss)).trace(params)
    assert count_kernels(traced.jaxpr.jaxpr) == {'attention_forward': 1, 'attention_backward': 1}
    text = traced.lower(lowering_platforms=('tpu',)).as_text()
    assert text.count('@tpu_custom_call') == 2
