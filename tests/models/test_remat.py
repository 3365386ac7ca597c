"""The kernels of a step with each rematerialization policy, lowered for a TPU or GPU that need not be there."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo

from fv_jax.core.hardware import CHIPS
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.kernels.attention import BACKENDS, Backend, attention
from fv_jax.models.dit import DiT, DiTConfig
from tests.kernels.counting import count_kernels

SMALL = DiTConfig(
    latent_channels=4, embed_dim=128, num_layers=3, num_heads=2, mlp_dim=64, cond_dim=8, text_dim=8, dtype='bfloat16'
)

POLICIES = ('none', 'dots', 'full', 'offload')


def trace_gradients(remat: str, backend: Backend) -> jax.stages.Traced:
    """Traces the gradients of a small network. Layers are the steps of a scan: kernels of each are in it once."""
    context = ParallelContext(attention=functools.partial(attention, backend=backend))
    model = nnx.eval_shape(lambda: DiT(dataclasses.replace(SMALL, remat=remat), rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model)
    inputs = jnp.zeros((1, 2, 8, 8, 4)), jnp.zeros(1), jnp.zeros((1, 5, 8)), jnp.zeros(1, jnp.int32)

    def loss(params):
        return jnp.mean(jnp.square(nnx.merge(graphdef, params)(*inputs, context=context)))

    return jax.jit(jax.grad(loss)).trace(params)


@pytest.mark.parametrize('chip', ['v5e', 'v4'])
@pytest.mark.parametrize('remat', POLICIES)
def test_a_layer_has_one_forward_and_one_backward_kernel(remat, chip):
    traced = trace_gradients(remat, BACKENDS['tpu'](CHIPS[chip]))
    assert count_kernels(traced.jaxpr.jaxpr) == {'attention_forward': 1, 'attention_backward': 1}
    text = traced.lower(lowering_platforms=('tpu',)).as_text()
    assert text.count('@tpu_custom_call') == 2


@pytest.mark.parametrize('remat', POLICIES)
def test_a_layer_has_one_forward_and_one_backward_kernel_of_cudnn(remat, monkeypatch):
    """The policies select cuDNN's residuals by the name of a primitive, which is not public."""
    monkeypatch.setattr(fused_attention_stablehlo, 'check_cudnn_version', lambda: 91500)
    traced = trace_gradients(remat, BACKENDS['gpu'](CHIPS['h100']))
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
    calls = collections.Counter(re.findall(r'__cudnn\$fmhaSoftmax(?:Backward)?', text))
    assert calls == {'__cudnn$fmhaSoftmax': 1, '__cudnn$fmhaSoftmaxBackward': 1}
