"""What a health check says of networks that are perfect, know nothing, or are broken in one place."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.core.parallel_context import ParallelContext
from fv_jax.data.degradation.configs import WeakConfig
from fv_jax.data.degradation.degradations import degrade_weak
from fv_jax.data.transforms import to_uint8
from fv_jax.evaluation.diagnostics import SuperResDiagnostics, pixel_metrics, probe_points
from fv_jax.models.dit import DiTConfig
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from fv_jax.training.heldout import HeldoutBatch
from fv_jax.training.monitoring.collapse import CollapseMonitor, CollapseMonitorConfig
from tests.data import sample_videos

CONFIG = SuperResConfig(
    noise_augmentation_timestep_range=(100, 300), text_length=2, guidance_scale=1.0, scale_factor=2.0, num_steps=3
)
STAGE = SuperRes(CONFIG, DiTConfig(embed_dim=64, num_layers=1, num_heads=1, mlp_dim=64, cond_dim=16, text_dim=8))
MONITOR = CollapseMonitorConfig(after_step=0)


class Pixels:
    """A fake VAE whose latents are the pixels."""

    def decode(self, z_BFHWC):
        return z_BFHWC


def clip():
    rng = np.random.default_rng(0)
    source_video = sample_videos.pattern(3, 32, 48) + rng.normal(0, 20, (3, 32, 48, 3))
    high = np.clip(source_video / 127.5 - 1, -1, 1).astype(np.float32)
    return high[None], degrade_weak(high, rng, WeakConfig(3, 3))[None]


HIGH, LOW = clip()


def diagnose(answer, stage=STAGE):
    """Diagnostics of a 'network' that returns answer(x, t, data, degraded), scaled latents, for data - source."""

    def make_model(params):
        def model(x, timestep_B, text, noise_augmentation_timestep_B, *, context):
            t = timestep_B[:, None, None, None, None] / 1000
            return (answer(x, t, 2.0 * HIGH, 2.0 * LOW) - x) / t

        return model

    return SuperResDiagnostics(
        stage=stage,
        make_model=make_model,
        vae=Pixels(),
        context=ParallelContext(attention=lambda q, k, v: v),
        batches=[HeldoutBatch({'z_high_BFHWC': jnp.asarray(HIGH), 'z_low_BFHWC': jnp.asarray(LOW)}, np.arange(1))],
        truths=[HIGH],
        key=jax.random.key(0),
    )


def test_diagnostics_of_a_perfect_network():
    health = diagnose(lambda x, t, data, degraded: data)({})
    found = health.metrics
    assert found['loss_vs_copy'] < 1e-6 and found['loss_vs_mean'] < 1e-6
    assert found['psnr'] > 50 and found['psnr_degraded'] < 30
    for name in ('energy', 'sharpness', 'flicker'):
        np.testing.assert_allclose(found[name], 1, atol=1e-3)
    assert found['sharpness_degraded'] < 0.5 and found['ssim_degraded'] < 0.9 < 0.99 < found['ssim']
    assert {f'loss_{kind}/{k}' for kind in ('t', 'noise') for k in range(10)} <= found.keys()
    assert CollapseMonitor(MONITOR).check(0, found) == []
    ((name, video),) = health.videos
    assert name == 'heldout_0' and video.shape == (3, 32, 3 * 48, 3) and video.dtype == np.uint8
    np.testing.assert_allclose(video[:, :, 48:96], video[:, :, 96:], atol=1)


@pytest.mark.parametrize(
    ('answer', 'violated'),
    [
        (lambda x, t, data, degraded: degraded, {'loss_vs_copy'}),
        (lambda x, t, data, degraded: jnp.zeros_like(x), {'loss_vs_mean', 'energy', 'sharpness', 'loss_vs_copy'}),
        (lambda x, t, data, degraded: 2 * data, {'energy'}),
        (lambda x, t, data, degraded: data + 1.5 * jnp.sign(jnp.sin(1e4 * x)), {'sharpness', 'psnr'}),
    ],
)
def test_diagnostics_of_broken_networks_violate_the_limits(answer, violated):
    found = {line.split()[0] for line in CollapseMonitor(MONITOR).check(0, diagnose(answer)({}).metrics)}
    assert violated <= found, found


def test_diagnostics_loss_by_decile_locates_a_fault():
    w, s = probe_points(STAGE, 3)
    t = 2.5 * w / (1 + 1.5 * w)
    broken = 7
    check = diagnose(lambda x, u, data, degraded: jnp.where(jnp.abs(u - t[broken]) < 1e-3, data + 0.5 * u, data))
    found = check({}).metrics
    assert found['loss_t/7'] > 0.2 and found[f'loss_noise/{3 * broken % 10}'] == found['loss_t/7']
    assert all(found[f'loss_t/{k}'] < 1e-6 for k in range(10) if k != broken)
    assert sorted(s) == [110, 130, 150, 170, 190, 210, 230, 250, 270, 290]


def test_diagnostics_use_fixed_noise():
    fixed = SuperRes(dataclasses.replace(CONFIG, noise_augmentation_timestep_range=None), STAGE.network)
    check = diagnose(lambda x, t, data, degraded: degraded, fixed)
    found = check({}).metrics
    assert found == check({}).metrics and not any(name.startswith('loss_noise') for name in found)


def test_diagnostics_without_ground_truth_use_the_vae_ceiling():
    check = dataclasses.replace(diagnose(lambda x, t, data, degraded: data), truths=[None])
    assert check({}).metrics['psnr_ceiling'] == 99


def test_diagnostics_flicker_is_relative_to_the_vae_ceiling():
    rng = np.random.default_rng(0)
    still = np.repeat(HIGH[0][:1], 4, axis=0)
    moving = np.clip(still + rng.normal(0, 0.1, still.shape), -1, 1).astype(np.float32)
    videos = {'enhanced': moving, 'degraded': still, 'ceiling': np.roll(moving, 1, 0), 'truth': still}
    found = pixel_metrics({name: to_uint8(video) for name, video in videos.items()})
    assert 0.7 < found['flicker'] < 1.4 and found['flicker_degraded'] == 0
    images = pixel_metrics({name: to_uint8(video[:1]) for name, video in videos.items()})
    assert images.keys() == {name for name in found if 'flicker' not in name}
