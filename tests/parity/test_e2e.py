"""The whole pipeline against the official one, from the recorded noises to the final frames (model guide 8).

Float32 throughout, with the exact time grid, and the official draws: the VAE's latents are sampled before stage 2 and
the last decode is made in two halves. The official layout is (B, T, C, H, W) around the networks and (B, C, T, H, W)
around the VAE; ours BFHWC. The fixture's latents are scaled, the pipeline's are not.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.api import FlashVideo
from fv_jax.sampling import programs
from fv_jax.sampling.settings import EnhanceSettings
from fv_jax.stages import super_res
from fv_jax.stages.low_res import LowResConfig
from fv_jax.text.encoder import TextConfig
from tests.diffusion.fixed_noise import fixed_noise
from tests.parity.official_noise import used_draws

TEXT, LATENTS, FRAMES = 1e-4, 1e-3, 0.1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recorded:
    """The official noises, BFHWC."""

    start: jax.Array
    steps: jax.Array
    vae: jax.Array
    ref: jax.Array

    def preview(self, shape):
        assert shape == self.start.shape
        return self.start, fixed_noise(self.steps)

    def posterior(self, shape):
        assert shape == self.vae.shape
        return self.vae

    def augmentation(self, shape):
        assert shape == self.ref.shape
        return self.ref


def network_arrays(x):
    return jnp.asarray(np.moveaxis(x, -3, -1))


def vae_arrays(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def levels(video_BFHWC):
    """[-1, 1] to 0 ... 255, not rounded."""
    return (np.asarray(video_BFHWC[0]) + 1) * 127.5


def assert_close(got, expected, atol):
    np.testing.assert_allclose(got, expected, rtol=0, atol=atol)


@pytest.fixture(scope='module')
def recorded(official):
    with np.load(official / 'e2e_io.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def info(official):
    return json.loads((official / 'e2e_info.json').read_text())


@pytest.fixture(scope='module')
def noise(recorded, info):
    draws = used_draws(recorded['s1_noises'], info['steps'])
    return Recorded(
        network_arrays(recorded['s1_x_T']),
        network_arrays(draws),
        vae_arrays(recorded['s2_vae_noise']),
        network_arrays(recorded['s2_ref_noise']),
    )


@pytest.fixture(scope='module')
def fv(official, recorded):
    text = TextConfig(str(official / 't5'), length=recorded['s1_context'].shape[1], dtype='float32')
    return FlashVideo.from_official(official, dtype='float32', text=text)


@pytest.fixture(scope='module')
def texts(fv, info):
    """The embedded prompt of both stages."""
    first = fv.stage1.encode_prompts([info['text']])
    second = fv.stage2.encode_prompts([fv.enhance_settings.prompt_prefix + info['text']])
    return jnp.asarray(first), jnp.asarray(second)


@pytest.fixture(scope='module')
def generate_preview(fv, info, noise, texts):
    """Latents and video of stage 1."""
    settings = dataclasses.replace(fv.preview_settings, size=(info['H'], info['W']), num_steps=info['steps'])
    size = fv.stage1.latent_spec.latent_size(settings.frames, *settings.size)
    first = fv.stage1.loaded.with_stage(fv.stage1.stage.with_sampler_config(settings))
    z = programs.generate(first, texts[0], noise, size)
    return z, programs.decode_latents(fv.stage1.vae.jitted, z)


@pytest.fixture(scope='module')
def enhance_preview(fv, recorded, noise, texts, generate_preview):
    """Source latents, latents and video of stage 2."""
    size, vae = recorded['s2_frames'].shape[1:3], fv.stage2.vae.jitted
    settings = dataclasses.replace(fv.enhance_settings, size=size, width_slices=2)
    second = fv.stage2.loaded.with_stage(fv.stage2.stage.with_sampler_config(settings))
    assert settings.sample_posterior
    z_low = programs.low_res_latents(vae, generate_preview[1], size, noise)
    z_high = programs.enhance_latents(second, z_low, texts[1], noise)
    return z_low, z_high, programs.decode_latents(vae, z_high, width_slices=settings.slices)


def test_e2e_parity_of_text_embeddings(texts, recorded, info):
    assert info['texts']['s2_text'] == EnhanceSettings().prompt_prefix + info['text']
    assert_close(texts[0], recorded['s1_context'], TEXT)
    assert_close(texts[1], recorded['s2_context'], TEXT)


def test_e2e_parity_of_the_preview(generate_preview, recorded):
    z, video = generate_preview
    assert_close(LowResConfig().scale_factor * z, network_arrays(recorded['s1_latent']), LATENTS)
    assert_close(levels(video), recorded['s1_frames'], FRAMES)


def test_e2e_parity_of_the_source(enhance_preview, recorded):
    scale = super_res.OFFICIAL.scale_factor
    assert_close(scale * enhance_preview[0], vae_arrays(recorded['s2_ref_latent']), LATENTS)


def test_e2e_parity_of_the_video(enhance_preview, recorded):
    _, z, video = enhance_preview
    assert_close(super_res.OFFICIAL.scale_factor * z, network_arrays(recorded['s2_latent']), LATENTS)
    assert_close(levels(video), recorded['s2_frames'], FRAMES)
