"""Each kind of targets of a flow map on meshes of eight, and in microbatches, beside those of one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.lora import LoRAConfig
from fv_jax.models.vae import OFFICIAL
from fv_jax.parallel import arrays, sharding
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.parallel.rules import Partitioner
from fv_jax.stages.flow_map import FlowMap
from fv_jax.stages.flow_map_targets import TARGETS, FlowMapConfig
from fv_jax.stages.noise import per_example_keys
from fv_jax.training import state, step
from tests.parallel.test_gradients import DIT, ROWS, SIZE
from tests.sampling import tiny

MESHES = {'data': 8}, {'data': 2, 'fsdp': 2, 'context': 2}, {'fsdp': 4, 'tensor': 2}
ALL = dataclasses.replace(DIT, embed_interval=True)
LORA = dataclasses.replace(ALL, lora=LoRAConfig(rank=2, targets=('qkv', 'modulation')))


@pytest.fixture(params=TARGETS)
def stage(request):
    shares = tuple(float(name == request.param) for name in TARGETS)
    dit = ALL if request.param == 'step' else LORA  # `step` with a teacher of its own, by Heun's method
    more = {'teacher_sampler': 'heun', 'teacher_substeps': 2} if request.param == 'step' else {}
    config = FlowMapConfig(text_length=5, target_shares=shares, rollout_share=0.5 * (shares[0] < 1), **more)
    return FlowMap(config, dit)


def gradients(stage, context, where=None, microbatches=1):
    """(loss and metrics, gradients) of the first step."""
    network = state.ModelDef.from_stage(stage)
    parts = [nnx.to_pure_dict(part) for part in (network.trainable, network.frozen)]
    trainable, frozen = (jax.tree.map(np.asarray, tiny.random(part, 0.3)) for part in parts)
    average = jax.tree.map(lambda x: np.float32(0.9 * x), trainable)
    rng = np.random.default_rng(1)
    shapes = {'z_high_BFHWC': (ROWS, *SIZE), 'z_low_BFHWC': (ROWS, *SIZE), 'text_BLD': (ROWS, 5, DIT.text_dim)}
    batch = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found = None
    if where is not None:
        placed = [sharding.parameter_shardings(where, part) for part in (network.trainable, network.frozen)]
        trainable, average = (arrays.put_sharded(part, placed[0]) for part in (trainable, average))
        frozen, batch = arrays.put_sharded(frozen, placed[1]), arrays.to_global(batch, where, OFFICIAL.latent_spec)
        found = state.TrainState(where.replicated, *placed, {}, placed[0])
    of = step.gradients(stage, network, context, found, microbatches)

    @jax.jit
    def compute(trainable, frozen, average, batch):
        keys_B = per_example_keys(jax.random.key(0), 0, ROWS)
        noised = stage.sample_noise_and_time(batch, keys_B, jnp.float32(0.5))
        return of(state.TrainState(np.int32(0), trainable, frozen, {}, average), noised)

    return jax.tree.map(np.asarray, compute(trainable, frozen, average, batch))


def test_targets_on_meshes_and_in_microbatches_equal_one_device(stage):
    (expected, metrics), grads = gradients(stage, SINGLE_DEVICE)
    assert metrics['target_kind'] == stage.config.target_shares.index(1.0) and metrics['target_norm'] > 0.1
    for axes in MESHES:
        where = Partitioner(make_mesh(ParallelConfig(**({'data': 1} | axes))), stage.strategy)
        for microbatches in (1, 2) if 'data' in axes and axes['data'] == 2 else (1,):
            context = sharding.make_parallel_context(where)
            (loss, found), other = gradients(stage, context, where, microbatches=microbatches)
            np.testing.assert_allclose(loss, expected, rtol=1e-5)
            np.testing.assert_allclose(found['interval'], metrics['interval'], rtol=1e-5)
            assert found['target_kind'] == metrics['target_kind']
            for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(other), jax.tree.leaves(grads), strict=True):
                np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max(), rtol=0, err_msg=f'{axes} {path}')
