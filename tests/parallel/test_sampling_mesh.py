"""Sampling over meshes of 6 and 8 devices, beside one: previews, videos, clips, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from fv_jax.api import FlashVideo
from fv_jax.core.config import ConfigError
from fv_jax.core.hardware import CHIPS
from fv_jax.evaluation.clip_sources import EvaluationClip
from fv_jax.evaluation.networks import make_methods, open_networks
from fv_jax.kernels.context_cost import AttentionShape, cheapest_plan, seconds
from fv_jax.models.dit import STAGE1, STAGE2
from fv_jax.parallel.mesh import AUTO, ParallelConfig
from fv_jax.sampling import sampling_mesh
from fv_jax.sampling.sampling_mesh import SamplingMesh
from fv_jax.stages.super_res import SuperRes
from tests.compiling import compiled
from tests.sampling import tiny

DOG, CAT = 'a dog', 'a cat runs'
HEADS = {'num_heads': 6, 'embed_dim': 96, 'mlp_dim': 96, 'num_layers': 2}
SEEDS = [3, 4]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A pipeline of two networks of six heads."""
    folder = tmp_path_factory.mktemp('pipeline')
    tiny.save_vae(folder / 'vae.safetensors')
    first, second = (dataclasses.replace(dit, **HEADS) for dit in (tiny.FIRST_DIT, tiny.DIT))
    stage1 = tiny.first_stage_config(folder / 'vae.safetensors', dit=first)
    stage2 = dataclasses.replace(tiny.stage_config(folder / 'vae.safetensors', second), text=tiny.TEXT)
    tiny.save_run(folder / 'stage1', stage1, size=tiny.PREVIEW)
    tiny.save_run(folder / 'stage2', stage2)
    return folder


def open_pipeline(folder, num_devices, parallel=None):
    return FlashVideo.from_checkpoint(folder, parallel=parallel, devices=jax.devices()[:num_devices])


@pytest.fixture(scope='module')
def alone(folder):
    return open_pipeline(folder, 1)


@pytest.fixture(scope='module')
def clip():
    return np.random.default_rng(0).integers(0, 256, (11, 16, 32, 3), np.uint8)


@pytest.fixture(scope='module')
def expected(alone, clip):
    """Of a batch of two, by the number of frames, and of a clip."""
    found = {frames: sample(alone, frames) for frames in (1, tiny.FRAMES)}
    return found, alone.enhance(clip)


def sample(fv, frames):
    previews = fv.preview([DOG, CAT], SEEDS, dataclasses.replace(fv.preview_settings, frames=frames))
    return previews, fv.enhance(previews)


def assert_equal(results, expected):
    """Frames to 0.5 of 255 before rounding."""
    for got, wanted in zip(results, expected, strict=True):
        difference = np.abs(got.frames.astype(int) - wanted.frames)
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01
        assert wanted.frames.std() > 1


MESHES = {
    'nothing given': (8, None),
    'tensor 2, context 2, data 2': (8, ParallelConfig(data=2, context=2, tensor=2)),
    'six devices': (6, None),
}


@pytest.mark.parametrize(('num_devices', 'parallel'), MESHES.values(), ids=MESHES)
def test_sampling_over_a_mesh_equals_one_device(num_devices, parallel, folder, clip, expected):
    """More meshes: full_meshes.py."""
    assert_samples_like_one(num_devices, parallel, folder, clip, expected)


def assert_samples_like_one(num_devices, parallel, folder, clip, expected):
    """Clips, and videos of more than one chunk of the VAE, on the meshes that are made without settings."""
    fv, (of_prompts, of_clip) = open_pipeline(folder, num_devices, parallel), expected
    frames = 1 if parallel else tiny.FRAMES
    (previews, videos), (previews_1, videos_1) = sample(fv, frames), of_prompts[frames]
    for got, wanted in zip(previews, previews_1, strict=True):
        np.testing.assert_allclose(got.latents, wanted.latents, atol=1e-3)
    assert_equal([*previews, *videos], [*previews_1, *videos_1])
    if parallel is None:
        assert_equal([fv.enhance(clip)], [of_clip])
    kernel = fv.stage1.loaded.state['blocks']['mlp']['hidden']['kernel'].get_value()
    assert len(kernel.sharding.device_set) == num_devices
    whole = parallel is None or parallel.strategy is None
    parts = parallel.tensor if whole and parallel is not None else 1 if whole else num_devices
    assert kernel.addressable_shards[0].data.size * parts == kernel.size


def test_second_pipeline_over_a_mesh_does_not_compile(folder):
    """Its parallel contexts and its VAE are static arguments, equal to those of the first one."""
    first, second = (open_pipeline(folder, 8) for _ in range(2))
    previews = first.preview([DOG, CAT], SEEDS)
    first.enhance(previews)
    with compiled() as new_programs:
        second.enhance(second.preview([DOG, CAT], SEEDS))
    assert not new_programs


def test_stored_preview_and_fingerprints_do_not_depend_on_the_mesh(folder, alone, expected):
    fv = open_pipeline(folder, 8, ParallelConfig(data=1, fsdp=AUTO, strategy='fsdp'))
    assert fv.stage1.weight_digests == alone.stage1.weight_digests
    assert fv.stage2.weight_digests == alone.stage2.weight_digests
    previews, videos = expected[0][1]
    assert_equal(fv.enhance([previews[1]]), [videos[1]])


@pytest.mark.parametrize(
    ('parallel', 'message'),
    [
        (ParallelConfig(data=1, fsdp=3), r'fsdp 3 needs 3 device\(s\) and there are 8'),
        (ParallelConfig(data=1, context=5, fsdp=AUTO), r'context 5 does not divide 8 device\(s\)'),
        (ParallelConfig(data=1, strategy='fdsp', fsdp=AUTO), "parallel.strategy=fdsp: did you mean 'fsdp'"),
    ],
)
def test_meshes_that_cannot_be_are_refused(parallel, message, folder):
    with pytest.raises(ConfigError, match=message):
        open_pipeline(folder, 8, parallel)


def test_heads_that_do_not_divide_are_refused(folder):
    fv = open_pipeline(folder, 8, ParallelConfig(data=1, fsdp=2, tensor=4))
    with pytest.raises(ConfigError, match=r'does not divide by 4 \(config.parallel: tensor 4\)'):
        fv.preview(DOG)


# What the defaults choose.


@pytest.mark.parametrize(('chip', 'whole'), [('v5e', False), ('v6e', True), ('v5p', True), ('h100', True)])
def test_weights_are_whole_where_they_fit(chip, whole, monkeypatch):
    """Stage 1 has 10.4 GiB."""
    monkeypatch.setattr(sampling_mesh, 'find_chip', lambda kind: CHIPS[chip])
    stage = SuperRes(tiny.SUPERRES, dataclasses.replace(STAGE1, dtype='bfloat16', param_dtype='bfloat16', lora=None))
    strategy = SamplingMesh.create().network_partitioner(stage).strategy
    assert strategy == ('replicated_weights' if whole else 'fsdp')


@pytest.mark.parametrize('chip', ['v5e', 'v6e', 'v5p', 'v7x', 'h100'])
@pytest.mark.parametrize(('dit', 'tokens'), [(STAGE1, 6_466), (STAGE2, 104_746)])
@pytest.mark.parametrize('devices', [4, 8])
def test_two_branches_on_two_halves_are_cheapest_by_the_cost_model(chip, dit, tokens, devices):
    """Why rows are divided before tokens are: guidance-parallel against both branches over all devices."""

    def cost(groups):
        shape = AttentionShape(2 // groups, tokens, dit.num_heads, dit.head_dim, training=False)
        plan = cheapest_plan(shape, devices // groups, CHIPS[chip])
        return seconds(plan, shape, devices // groups, CHIPS[chip])

    assert cost(2) <= cost(1)


def test_evaluation_over_a_mesh_equals_one_device(folder, clip):
    """The network and the VAE's round trip of `evaluate`."""
    truth = np.random.default_rng(1).integers(0, 256, (9, 64, 128, 3), np.uint8)
    given = EvaluationClip('clip', clip[:9], (64, 128), 8.0, 0, truth=truth)

    def make_videos(devices):
        opened = open_networks([folder / 'stage2'], SamplingMesh.create(devices=devices))
        return [method.make(given) for method in make_methods(opened, (1,), [])]

    for got, wanted in zip(make_videos(jax.devices()), make_videos(jax.devices()[:1]), strict=True):
        assert np.abs(got.astype(int) - wanted).max() <= 1 and wanted.std() > 1
