"""Batches to the mesh and back, states that are never whole, and checkpoints from one mesh on another."""

from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from configs import stage2
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core.config import ConfigError, build
from fv_jax.models.vae import OFFICIAL
from fv_jax.parallel import arrays
from fv_jax.parallel.mesh import AXES, ParallelConfig, make_mesh
from fv_jax.parallel.rules import Partitioner
from fv_jax.training import state
from fv_jax.training.run.setup import TrainConfig, make_partitioner, make_train_setup


def partitioner(strategy='fsdp_split_frames', **parallel):
    return Partitioner(make_mesh(ParallelConfig(**({'data': 1} | parallel))), strategy)


def sample_array(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_batch_axes_split_examples_and_width_of_videos():
    batch = {
        'high_res_BFHWC': sample_array(4, 1, 8, 64, 3),
        'z_low_BFHWC': sample_array(4, 1, 1, 8, 2),
        'text_BLD': sample_array(4, 3, 5),
    }
    placed = arrays.to_global(batch, partitioner(fsdp=2, context=4), OFFICIAL.latent_spec)
    shares = {name: x.sharding.shard_shape(x.shape) for name, x in placed.items()}
    assert shares == {'high_res_BFHWC': (2, 1, 8, 16, 3), 'z_low_BFHWC': (2, 1, 1, 8, 2), 'text_BLD': (2, 3, 5)}
    for name, x in placed.items():
        np.testing.assert_array_equal(x, batch[name])


def test_frames_are_split_over_as_many_chips_as_divide_their_latent_columns():
    """48 columns are 6 of latents: over 4 chips, 2 parts of 3, each on two chips."""
    where = partitioner(fsdp=2, context=4)

    def share(shape, latent_columns):
        return where.frames_sharding(shape, latent_columns, 'frames').shard_shape(shape)

    assert share((2, 1, 32, 48, 3), 6) == (1, 1, 32, 24, 3)
    assert share((2, 1, 32, 56, 3), 7) == (1, 1, 32, 56, 3)
    assert share((2, 49, 1072, 1920, 3), 240) == (1, 49, 1072, 480, 3)
    assert share((2, 13, 134, 240, 16), 240) == (1, 13, 134, 60, 16)


@pytest.mark.parametrize(('examples', 'shape'), [(6, (2, 1, 8, 1)), (8, (4, 2, 2, 1)), (1, (1, 1, 16, 1))])
def test_fold_batch_keeps_the_order_of_the_devices(examples, shape):
    devices = np.arange(16).reshape(4, 2, 2, 1)
    mesh = SimpleNamespace(devices=devices, axis_names=AXES, axis_types=(AxisType.Auto,) * 4)
    made = []
    with mock.patch('fv_jax.parallel.rules.Mesh', lambda devices, names, axis_types: made.append(devices)):
        Partitioner(mesh, 'fsdp').fold_batch(examples)
    folded = made[0] if made else devices
    assert folded.shape == shape
    np.testing.assert_array_equal(folded.reshape(-1), np.arange(16))


class ProcessDevices:
    """Stands for a partitioner: the examples, by index, that the devices of one process hold."""

    def __init__(self, num_shards, examples):
        self.shards, self.examples = num_shards, examples

    def num_shards(self, name):
        return self.shards

    def sharding(self, names, shape, what):
        return self

    def addressable_devices_indices_map(self, shape):
        return {i: (slice(example, example + 1),) for i, example in enumerate(self.examples)}


@pytest.mark.parametrize(
    ('shards', 'mine', 'part'),
    [
        (8, [0, 1, 2, 3], (0, 2)),
        (8, [4, 5, 6, 7], (1, 2)),
        (2, [1, 1], (1, 2)),
        (1, [0, 0, 0], (0, 1)),
        (8, [6, 7], (3, 4)),
    ],
)
def test_process_part(shards, mine, part):
    assert arrays.process_part(ProcessDevices(shards, mine)) == part


@pytest.mark.parametrize(('shards', 'mine'), [(8, [0, 2]), (6, [1, 2]), (4, [0, 1, 2])])
def test_process_part_refuses_unequal_parts(shards, mine):
    with pytest.raises(ValueError, match='is not one of equal parts; make data x fsdp a multiple'):
        arrays.process_part(ProcessDevices(shards, mine))


def test_to_host_round_trip():
    where = partitioner(context=8)
    sharding = where.sharding(('act_batch', 'act_tokens'), (2, 16), 'x')
    x = sample_array(2, 16)
    placed = arrays.put_sharded({'x': x}, {'x': sharding})
    assert placed['x'].sharding == sharding
    np.testing.assert_array_equal(arrays.to_host(placed, where)['x'], x)


@pytest.fixture(scope='module')
def config():
    return stage2.get_config('smoke')


def make_setup(config, **parallel):
    config.parallel = {'data': 1} | parallel
    config.data.loader.batch_size = 8
    built = build(TrainConfig, config.to_dict())
    latent_spec = OFFICIAL.latent_spec
    return make_train_setup(built, make_partitioner(built, make_mesh(built.parallel), latent_spec), latent_spec)


def test_state_is_initialized_sharded_and_restored_on_another_mesh(config, tmp_path):
    here = make_setup(config, context=8)
    made = jax.jit(here.init_train_state, out_shardings=here.shardings)(jax.random.key(0))
    kernel = made.trainable['blocks']['mlp']['hidden']['kernel']
    moment = made.opt_state[1][0].mu['blocks']['mlp']['hidden']['kernel']
    for x in (kernel, moment, made.ema['blocks']['mlp']['hidden']['kernel']):
        assert len(x.addressable_shards) == 8 and x.addressable_shards[0].data.size == x.size // 8
    Checkpoints(tmp_path).save(3, state.to_items(made), {})
    there = make_setup(config, fsdp=4, tensor=2)
    restored = state.from_items(Checkpoints(tmp_path).restore(state.to_items(there.abstract_state)), ema=True)
    for a, b, sharding in zip(
        jax.tree.leaves(restored), jax.tree.leaves(made), jax.tree.leaves(there.shardings), strict=True
    ):
        assert a.sharding == sharding
        np.testing.assert_array_equal(a, b)


def test_on_cpu_device_names_the_setting_that_leaves_the_cpu_out(monkeypatch):
    def fail(backend):
        raise RuntimeError(f'Unknown backend {backend}')

    monkeypatch.setattr(jax, 'local_devices', fail)
    with pytest.raises(ConfigError, match='JAX_PLATFORMS=cpu: weights are read on the CPU first; use JAX_PLATFORMS='):
        arrays.on_cpu_device()
