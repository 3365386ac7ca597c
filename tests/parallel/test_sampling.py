"""Sampling and the VAE over eight devices, beside one."""

import jax
import numpy as np
import pytest
from flax import nnx

from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models import conv
from fv_jax.models.vae import OFFICIAL
from fv_jax.parallel import arrays, sharding
from fv_jax.parallel.mesh import ParallelConfig, make_mesh
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning import collectives
from fv_jax.stages.frozen_vae import jit_vae
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from fv_jax.training import state
from fv_jax.training.step import sample_step
from tests.sampling import tiny

STAGE = SuperRes(SuperResConfig(text_length=5, num_steps=2, guidance_batched=True), tiny.DIT)


def partitioner(**parallel):
    return Partitioner(make_mesh(ParallelConfig(**({'data': 1} | parallel))), 'fsdp_split_frames')


def close(a, b):
    scale = np.abs(b).max()
    np.testing.assert_allclose(np.asarray(a) / scale, b / scale, atol=1e-5)


@pytest.mark.parametrize('parallel', [{'context': 8}, {'fsdp': 2, 'context': 4}], ids=str)
def test_sharded_samples_equal_one_device(parallel):
    """Guided: twice the rows of the batch."""
    network = state.ModelDef.from_stage(STAGE)
    params = {'trainable': nnx.to_pure_dict(network.trainable), 'frozen': nnx.to_pure_dict(network.frozen)}
    params = tiny.random(params, 0.2)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 3, 6, 10, 4)).astype(np.float32)
    batch = {'z_low_BFHWC': z, 'text_BLD': rng.standard_normal((2, 5, tiny.DIT.text_dim)).astype(np.float32)}
    expected = sample_step(STAGE, network, SINGLE_DEVICE)(params, batch, jax.random.key(0), np.arange(2))[
        'z_sample_BFHWC'
    ]
    where = partitioner(**parallel)
    shardings = [sharding.parameter_shardings(where, part) for part in (network.trainable, network.frozen)]
    placed = arrays.put_sharded(params, dict(zip(('trainable', 'frozen'), shardings, strict=True)))
    context = sharding.make_parallel_context(where, sharding.ContextParallelConfig(training=False))
    sample = sample_step(STAGE, network, context)(
        placed, arrays.to_global(batch, where, OFFICIAL.latent_spec), jax.random.key(0), np.arange(2)
    )
    close(sample['z_sample_BFHWC'], expected)


def test_sharded_vae_equals_one_device_and_splits_the_width():
    """128 columns on eight chips: two of latents each, with halos at every level; group norms over all of them."""
    video = np.random.default_rng(0).uniform(-1, 1, (1, 9, 16, 128, 3)).astype(np.float32)
    alone, where = jit_vae(tiny.vae()), partitioner(context=8)
    spread = jit_vae(tiny.vae(), where)
    z = spread.encode(arrays.to_global({'x_BFHWC': video}, where, OFFICIAL.latent_spec)['x_BFHWC'])
    expected = alone.encode(video)
    close(z, expected)
    decoded = spread.decode(z)
    close(decoded, alone.decode(expected))
    assert decoded.sharding.shard_shape(decoded.shape)[3] == 128 // 8


@pytest.mark.parametrize('parallel', [{'context': 8}, {'fsdp': 2, 'context': 4}], ids=str)
def test_sharded_vae_in_blocks_equals_one_device(parallel, monkeypatch):
    """The convolution of TPUs: its blocks are cut where the chips' columns are, and exchange nothing but edges."""
    video = np.random.default_rng(0).uniform(-1, 1, (2, 9, 16, 64, 3)).astype(np.float32)
    alone, where = jit_vae(tiny.vae()), partitioner(**parallel)
    expected = alone.encode(video)
    expected_video = alone.decode(expected)
    x = arrays.to_global({'x_BFHWC': video}, where, OFFICIAL.latent_spec)['x_BFHWC']
    shards = set()

    def convolve(x, past, kernel, bias, stride=1, column_shards=1):
        shards.add(column_shards)
        return conv._conv_blocks(x.make, stride, column_shards, x.parts, past, kernel, bias.reshape(1, 1, 1, -1))

    monkeypatch.setattr(conv, 'convolve', convolve)
    spread = jit_vae(tiny.vae(), where)
    z = spread.encode(x)
    close(z, expected)
    close(spread.decode(z), expected_video)
    assert shards == {parallel['context']}
    text = spread.encoder.lower(jax.ShapeDtypeStruct(x.shape, x.dtype), {}).compile().as_text()
    gathered = collectives.parse_collectives(text, 8).counts.get('all-gather', 0)
    assert gathered <= 1, 'of the latents'


def test_blocks_of_columns_exchange_their_edges_alone():
    """Two columns of each frame, left and right."""
    where, shape = partitioner(context=8), (2, 4, 16, 128, 3)
    x = jax.ShapeDtypeStruct(shape, 'float32', sharding=where.frames_sharding(shape, 8, 'x'))
    kernel, bias = (jax.ShapeDtypeStruct(size, 'float32') for size in ((1, 3, 3, 3, 5), (1, 1, 1, 5)))

    def convolve(x, kernel, bias):
        return conv._conv_blocks(lambda x: x, 1, 8, (x,), None, kernel, bias)[0]

    traffic = collectives.parse_collectives(jax.jit(convolve).lower(x, kernel, bias).compile().as_text(), 8)
    assert traffic.sent_bytes == {'collective-permute': 4 * 2 * (2 * 16 * 3 * 4)}
