"""The VAE's training: its loss in closed form, with networks of a few numbers."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.core.config import ConfigError
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.stages.autoencoder import Autoencoder, AutoencoderConfig
from fv_jax.stages.noise import per_example_keys
from tests.sampling import tiny

CONTEXT = ParallelContext(attention=lambda q, k, v: v)


def network(mean, logvar):
    """Latents of constant moments; what is decoded is the latents' only channel in each of 1x8x8 pixels."""

    def encoder(x, cache):
        z = jnp.ones((*x.shape[:2], x.shape[2] // 8, x.shape[3] // 8, 1))
        return jnp.concatenate([mean * z, logvar * z], axis=-1), cache

    def decoder(z, cache):
        return jnp.repeat(z.repeat(8, axis=2).repeat(8, axis=3), 3, axis=-1), cache

    return SimpleNamespace(encoder=encoder, decoder=decoder, config=tiny.VAE_CONFIG)


def stage(kl_weight=0.0):
    return Autoencoder(AutoencoderConfig(kl_weight), tiny.VAE_CONFIG)


def loss(video, mean, logvar, kl_weight=0.0, step=0):
    batch = {'high_res_BFHWC': video}
    keys = per_example_keys(jax.random.key(0), step, len(video))
    here = stage(kl_weight)
    value, metrics = here.loss(network(mean, logvar), here.sample_noise_and_time(batch, keys), context=CONTEXT)
    assert value.shape == () and value.dtype == jnp.float32
    return float(value), {name: float(metric) for name, metric in metrics.items()}


def video(level, rows=2):
    return jnp.full((rows, 1, 16, 24, 3), level, jnp.float32)


def test_autoencoder_reconstruction_loss_and_psnr():
    value, metrics = loss(video(0.5), mean=0.3, logvar=-30.0)
    assert value == pytest.approx(0.04, rel=1e-3)
    assert metrics['psnr'] == pytest.approx(20, abs=0.01)  # of a range of 2
    assert metrics['latent_std'] == pytest.approx(0, abs=1e-6)


def test_autoencoder_charbonnier_and_motion_terms():
    """Of an error that is different in every frame."""
    error = np.array([0.3, 0.1, 0.1, 0.2, 0.05, 0.0, 0.1, 0.3, 0.4])
    moving = jnp.asarray(0.2 + error, jnp.float32).reshape(1, 9, 1, 1, 1) * jnp.ones((1, 9, 16, 24, 3))
    rho = {'squared': np.square, 'charbonnier': lambda e: np.sqrt(e**2 + 1e-4) - 0.01}
    for name, penalty in rho.items():
        here = Autoencoder(AutoencoderConfig(0.0, motion_weight=0.5, reconstruction=name), tiny.VAE_CONFIG)
        noised = here.sample_noise_and_time({'high_res_BFHWC': moving}, per_example_keys(jax.random.key(0), 0, 1))
        value, _ = here.loss(network(0.2, -30.0), noised, context=CONTEXT)
        assert value == pytest.approx(penalty(error).mean() + 0.5 * penalty(np.diff(error)).mean(), rel=1e-4)


def test_autoencoder_kl_divergence():
    """KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - ln s."""
    logvar, mean = -2.0, 0.3
    expected = (mean**2 + np.exp(logvar) - 1) / 2 - logvar / 2
    without, metrics = loss(video(0.5), mean, logvar)
    assert metrics['kl'] == pytest.approx(expected, rel=1e-5)
    weighted, _ = loss(video(0.5), mean, logvar, kl_weight=0.1)
    assert weighted - without == pytest.approx(0.1 * expected, rel=1e-3)
    assert loss(video(0.5), 0.0, 0.0)[1]['kl'] == pytest.approx(0, abs=1e-6)


def test_autoencoder_latents_depend_on_the_keys_of_their_examples():
    """The error is that of the mean and the noise's variance; another step is other noise."""
    logvar = -2.0
    first, again, other = (loss(video(0.3, rows=64), 0.3, logvar, step=step)[0] for step in (0, 0, 1))
    assert first == again != other
    assert first == pytest.approx(np.exp(logvar), rel=0.3)


def test_autoencoder_samples_are_decoded_means():
    batch = {'high_res_BFHWC': video(0.5)}
    assert stage().encode(batch) is batch
    shown = stage().sample(network(0.3, 5.0), batch, jax.random.split(jax.random.key(0), 2), context=CONTEXT)
    assert shown.keys() == {'high_res_BFHWC', 'decoded_BFHWC'}
    np.testing.assert_allclose(shown['decoded_BFHWC'], 0.3, rtol=1e-6)


def test_autoencoder_trains_all_parameters():
    model = nnx.eval_shape(lambda: stage().init(nnx.Rngs(0)))
    _, trained, rest = nnx.split(model, stage().trainable(), ...)
    assert model.config == tiny.VAE_CONFIG and len(jax.tree.leaves(trained)) > 50 and not jax.tree.leaves(rest)


def test_autoencoder_with_a_frozen_encoder_trains_the_decoder():
    here = Autoencoder(AutoencoderConfig(trainable='decoder'), tiny.VAE_CONFIG)
    model = nnx.eval_shape(lambda: here.init(nnx.Rngs(0)))
    _, trained, rest = nnx.split(model, here.trainable(), ...)
    assert set(trained) == {'decoder'} and set(rest) == {'encoder'}


def test_autoencoder_refuses_a_negative_kl_weight():
    with pytest.raises(ConfigError, match='kl_weight=-1'):
        AutoencoderConfig(-1.0)


@pytest.mark.parametrize('init_from_image_vae', [False, True])
def test_autoencoder_init_from_an_image_vae_collapses_temporal_kernels(init_from_image_vae):
    vae = tiny.vae()
    before = vae.decoder.conv_in.kernel[...]
    Autoencoder(AutoencoderConfig(init_from_image_vae=init_from_image_vae), tiny.VAE_CONFIG).adapt_initial_params(vae)
    kernel = vae.decoder.conv_in.kernel[...]
    np.testing.assert_array_equal(
        kernel, before if not init_from_image_vae else np.stack([0 * before[0]] * 2 + [before.sum(0)])
    )
