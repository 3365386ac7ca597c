"""Model-guided degradation by a small stage 1 of random weights."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax import api
from fv_jax.core.config import ConfigError
from fv_jax.data.degradation.configs import ModelGuidedConfig
from fv_jax.data.degradation.degradations import GuidedByModel
from fv_jax.data.numpy_resize import resize_bilinear
from fv_jax.data.transforms import to_float
from fv_jax.sampling import programs
from fv_jax.sampling.lazy_stages import LazyVAE
from fv_jax.sampling.noise import SeededNoise
from tests.data import sample_videos
from tests.sampling import tiny

ALL = (0.01, 0.99)  # noise levels of all states but the first and the last
CLIP = to_float(sample_videos.pattern(tiny.FRAMES, 64, 140))  # a quarter is 16x35, of which patches cover 16x32
SIZE = tiny.PREVIEW


class Averages:
    """A VAE in a few lines: latents are averages of 8x8 pixels of every fourth frame, which are repeated."""

    config = tiny.VAE_CONFIG

    def video_sharding(self, shape_BFHWC):
        return None

    def encode_moments(self, video_BFHWC, tiling):
        batch, frames, height, width, _ = video_BFHWC.shape
        cells = video_BFHWC[:, ::4].reshape(batch, frames // 4 + 1, height // 8, 8, width // 8, 8, 3)
        return jnp.pad(cells.mean((3, 5)), [(0, 0)] * 4 + [(0, 5)])  # four means, four log variances

    def decode(self, z_BFHWC, tiling, *, width_slices):
        video = z_BFHWC[..., :3].repeat(8, axis=2).repeat(8, axis=3)
        return jnp.concatenate([video[:, :1], video[:, 1:].repeat(4, axis=1)], axis=1)


def open_degradation(run: str, noise_levels: tuple[float, float], text_digest: str | None):
    opened = api.open_stage_degradation(ModelGuidedConfig(run, noise_levels=noise_levels), text_digest)
    opened.preview.vae = LazyVAE(tiny.VAE_CONFIG, Averages, str)
    return opened


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp('runs')
    tiny.save_pipeline_and_vae(folder)
    return str(folder / 'stage1')


@pytest.fixture(scope='module')
def opened(run: str):
    return open_degradation(run, ALL, None)


def levels(opened, low: float, high: float):
    """The same degradation at other noise levels."""
    return dataclasses.replace(opened, config=dataclasses.replace(opened.config, noise_levels=(low, high)))


def round_trip(opened) -> np.ndarray:
    """The clip, shrunk, encoded, decoded and enlarged."""
    vae = opened.preview.vae.jitted
    z = programs.low_res_latents(vae, jnp.asarray(CLIP[None]), SIZE)
    return resize_bilinear(np.asarray(programs.decode_latents(vae, z))[0], CLIP.shape[1:3])


def test_model_guided_degradation_of_no_noise_gives_the_latents_back(opened) -> None:
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, 4, 4)), jnp.float32)
    last = len(opened.preview.stage.noise_levels()) - 1
    out = programs.denoise_latents(opened.preview.loaded, z, None, SeededNoise.from_seeds([0]), last)
    np.testing.assert_array_equal(out, z)
    np.testing.assert_allclose(levels(opened, 0, 0)(CLIP, GuidedByModel(3), None), round_trip(opened), atol=1e-6)


def test_model_guided_degradation_is_that_of_stage_1_from_a_state_of_its_sampler(opened) -> None:
    stage, loaded = opened.preview.stage, opened.preview.loaded
    state = 2
    level = stage.noise_levels()[state]
    fixed = levels(opened, level - 1e-3, level + 1e-3)
    assert fixed.states().tolist() == [state]
    degraded = fixed(CLIP, GuidedByModel(3), None)
    assert degraded.shape == CLIP.shape and degraded.dtype == np.float32 and np.abs(degraded).max() <= 1
    assert fixed.draw(GuidedByModel(3))[0] == state and f'noise level {level:.3f}' in fixed.describe(GuidedByModel(3))
    noise = SeededNoise.from_seeds([fixed.draw(GuidedByModel(3))[1]])
    z = programs.low_res_latents(opened.preview.vae.jitted, jnp.asarray(CLIP[None]), SIZE)
    context = loaded.parallel_context(z.shape)
    from_state = dataclasses.replace(stage.without_guidance(), first_state=state)
    inputs = {'z_high_BFHWC': z, 'text_BLD': from_state.zero_text(1)}
    network = nnx.merge(loaded.graphdef, loaded.state)
    expected = from_state.sampling_trajectory(network, inputs, noise, z.shape, context=context).integrate()
    video = np.asarray(programs.decode_latents(opened.preview.vae.jitted, expected))[0]
    np.testing.assert_allclose(degraded, resize_bilinear(video, CLIP.shape[1:3]), atol=1e-4)


def test_model_guided_degradation_depends_on_clip_and_seed_alone(opened) -> None:
    kept = CLIP.copy()
    one, again, other = (opened(CLIP, GuidedByModel(seed), None) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(CLIP, kept)
    assert np.abs(one - other).max() > 1e-3
    # More noise moves the clip further away.
    stated = opened.preview.stage.noise_levels()
    distances = [
        np.abs(levels(opened, level - 1e-3, level + 1e-3)(CLIP, GuidedByModel(1), None) - round_trip(opened)).mean()
        for level in stated[1:-1]
    ]
    assert distances == sorted(distances, reverse=True) and distances[-1] > 1e-3


def test_model_guided_degradation_takes_captions_of_its_own_encoder(run: str, opened, log_lines: list[str]) -> None:
    encoder = opened.preview.text.open()
    dog, cat = encoder.encode(['a dog runs', 'a cat sleeps'])
    digest = encoder.fingerprint.digest
    captioned = open_degradation(run, ALL, digest)
    assert log_lines[-1].endswith('with the captions of the clips')
    made = [captioned(CLIP, GuidedByModel(1), text) for text in (dog, cat, None)]
    assert np.abs(made[0] - made[1]).max() > 1e-4 and np.abs(made[0] - made[2]).max() > 1e-4
    without = opened(CLIP, GuidedByModel(1), None)
    np.testing.assert_allclose(made[2], without, atol=1e-6)
    other = open_degradation(run, ALL, '0' * 16)
    assert log_lines[-1].endswith('without text and guidance')
    np.testing.assert_array_equal(other(CLIP, GuidedByModel(1), dog), without)


def test_model_guided_degradation_names_what_cannot_be_used(run: str, opened, tmp_path) -> None:
    stated = opened.preview.stage.noise_levels()
    near = ' and '.join(f'{level:.3f}' for level in stated[[3, 2]])
    with pytest.raises(ConfigError, match=rf'noise_levels=0.01, 0.02: no state .*; the nearest have {near}'):
        api.open_stage_degradation(ModelGuidedConfig(run, noise_levels=(0.01, 0.02)), None)
    with pytest.raises(ConfigError, match=r'model_guided.checkpoint: .*none: does not exist'):
        api.open_stage_degradation(ModelGuidedConfig(str(tmp_path / 'none')), None)
    second = run.replace('stage1', 'stage2')
    with pytest.raises(ConfigError, match=r'model_guided.checkpoint: .*contains no stage 1'):
        api.open_stage_degradation(ModelGuidedConfig(second), None)
    with pytest.raises(ValueError, match='too small'):
        opened(CLIP[:, :48], GuidedByModel(1), None)
    with pytest.raises(ValueError, match='frames=7: a clip must have'):
        opened(CLIP[:7], GuidedByModel(1), None)
