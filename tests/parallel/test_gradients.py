"""Loss and every gradient of both stages on meshes of eight, beside those of one device."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.dit import DiTConfig
from fv_jax.models.lora import LoRAConfig
from fv_jax.models.vae import OFFICIAL
from fv_jax.parallel import arrays, sharding
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning import collectives
from fv_jax.stages.low_res import LowRes, LowResConfig
from fv_jax.stages.noise import per_example_keys
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from fv_jax.training import state, step
from tests.sampling import tiny

MESHES = [
    {'data': 8},
    {'fsdp': 8},
    {'context': 8},
    {'data': 2, 'fsdp': 2, 'context': 2},
    {'fsdp': 4, 'tensor': 2},
]
LORA_MESHES = MESHES[2], MESHES[4]
ROWS = 8
# 3 x 3 x 5 patches and 5 tokens of text: 50 tokens, which no mesh with a context axis divides.
SIZE = (3, 6, 10, 4)
DIT = DiTConfig(latent_channels=4, embed_dim=32, num_layers=2, num_heads=2, mlp_dim=48, cond_dim=8, text_dim=8)
LORA = dataclasses.replace(
    DIT,
    embed_num_frames=False,
    embed_noise_augmentation_timestep=False,
    lora=LoRAConfig(rank=2, targets=('qkv', 'modulation')),
)
STAGES = {
    'superres': SuperRes(SuperResConfig(text_length=5), DIT),
    'lowres': LowRes(LowResConfig(text_length=5), LORA),
}


def partitioner(axes: dict[str, int], kind: str) -> Partitioner:
    return Partitioner(make_mesh(ParallelConfig(**({'data': 1} | axes))), STAGES[kind].strategy)


@pytest.fixture(scope='module', params=list(STAGES))
def make_network(request):
    """(kind, stage, network, (trainable, frozen) on the host, batch on the host)."""
    stage = STAGES[request.param]
    network = state.ModelDef.from_stage(stage)
    params = [
        jax.tree.map(np.asarray, tiny.random(nnx.to_pure_dict(p), 0.3)) for p in (network.trainable, network.frozen)
    ]
    rng = np.random.default_rng(1)
    shapes = {'z_high_BFHWC': (ROWS, *SIZE), 'z_low_BFHWC': (ROWS, *SIZE), 'text_BLD': (ROWS, 5, DIT.text_dim)}
    batch = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return request.param, stage, network, params, batch


def loss_and_grads(stage, network, context):
    def loss(trainable, frozen, batch):
        keys_B = per_example_keys(jax.random.key(0), 0, ROWS)
        return stage.loss(network.model(trainable, frozen), stage.sample_noise_and_time(batch, keys_B), context=context)

    return jax.value_and_grad(loss, has_aux=True)


@pytest.fixture(scope='module')
def single_device_gradients(make_network):
    _, stage, network, params, batch = make_network
    return jax.tree.map(np.asarray, jax.jit(loss_and_grads(stage, network, SINGLE_DEVICE))(*params, batch))


@pytest.mark.parametrize('axes', MESHES, ids=str)
def test_sharded_loss_and_gradients_equal_one_device(make_network, single_device_gradients, axes):
    kind, stage, network, params, batch = make_network
    if kind == 'lowres' and axes not in LORA_MESHES:
        pytest.skip('what differs, the matrices of LoRA, is seen on two meshes')
    where = partitioner(axes, kind)
    shardings = [sharding.parameter_shardings(where, part) for part in (network.trainable, network.frozen)]
    placed = [arrays.put_sharded(part, s) for part, s in zip(params, shardings, strict=True)]
    of = jax.jit(
        loss_and_grads(stage, network, sharding.make_parallel_context(where)),
        out_shardings=((None, None), shardings[0]),
    )
    (loss, metrics), grads = of(*placed, arrays.to_global(batch, where, OFFICIAL.latent_spec))
    (expected, expected_metrics), expected_grads = single_device_gradients
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name in expected_metrics:
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5, err_msg=name)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True):
        assert np.abs(b).max() > 0, path
        np.testing.assert_allclose(np.asarray(a) / np.abs(b).max(), b / np.abs(b).max(), atol=1e-5, err_msg=str(path))


def test_sharded_microbatches_equal_the_batch(make_network, single_device_gradients):
    kind, stage, network, params, batch = make_network
    if kind == 'superres':
        pytest.skip('one stage is enough; this one has frozen parameters as well')
    where = partitioner({'fsdp': 4, 'tensor': 2}, kind)
    parts = [sharding.parameter_shardings(where, part) for part in (network.trainable, network.frozen)]
    placed = [arrays.put_sharded(part, s) for part, s in zip(params, parts, strict=True)]
    shardings = state.TrainState(where.replicated, *parts, {}, None)
    of = step.gradients(stage, network, sharding.make_parallel_context(where), shardings, microbatches=2)

    def compute_gradients(trainable, frozen, batch):
        noised = stage.sample_noise_and_time(batch, per_example_keys(jax.random.key(0), 0, ROWS))
        return of(state.TrainState(np.int32(0), trainable, frozen, {}, None), noised)

    (loss, _), grads = jax.jit(compute_gradients)(*placed, arrays.to_global(batch, where, OFFICIAL.latent_spec))
    np.testing.assert_allclose(loss, single_device_gradients[0][0], rtol=1e-5)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(single_device_gradients[1]), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a) / np.abs(b).max(), b / np.abs(b).max(), atol=1e-5, err_msg=str(path))
    for a, s in zip(jax.tree.leaves(grads), jax.tree.leaves(parts[0]), strict=True):
        assert a.sharding.is_equivalent_to(s, a.ndim)


def test_sharded_microbatches_move_no_example():
    where = partitioner({'data': 2, 'fsdp': 2, 'context': 2}, 'superres')
    batch = arrays.to_global({'z_low_BFHWC': np.zeros((ROWS, *SIZE), np.float32)}, where, OFFICIAL.latent_spec)
    split = jax.jit(lambda batch: step.split_microbatches(batch, 2)['z_low_BFHWC'] + 1).lower(batch).compile()
    assert not collectives.parse_collectives(split.as_text(), 8).counts
    assert split.output_shardings.spec[1] == ('data', 'fsdp')


@pytest.mark.parametrize('axes', MESHES[1:3], ids=str)
def test_large_parameters_are_split_over_all_chips(make_network, axes):
    kind, _, network, _, _ = make_network
    shardings = sharding.parameter_shardings(partitioner(axes, kind), network.trainable)
    shapes = nnx.to_pure_dict(network.trainable)
    whole = 0
    for (path, s), x in zip(jax.tree_util.tree_leaves_with_path(shardings), jax.tree.leaves(shapes), strict=True):
        share = s.shard_shape(x.shape)
        if np.prod(share) == x.size:
            assert path[-1].key != 'kernel' or 'embed' in path[0].key, path
            whole += x.size
        else:
            assert 8 * np.prod(share) == x.size, path
    assert whole < 0.2 * sum(x.size for x in jax.tree.leaves(shapes))
