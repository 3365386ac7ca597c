"""A widened VAE computes what the narrow one does, and its copies can become different."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax import weights
from fv_jax.models import vae_chunking
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.weights import exported_network
from fv_jax.weights.layouts import key_table
from tests.launch.scripts import LAUNCH

sys.path.insert(0, str(LAUNCH))
import widen_vae

CONFIG = VAEConfig(base_channels=4, multipliers=(1, 2), temporal_levels=1, num_res_blocks=1, groups=2)


@pytest.fixture(scope='module')
def narrow() -> VAE:
    """A VAE of random parameters: a new one is zero in many places."""
    vae = VAE(CONFIG, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for _, leaf in nnx.to_flat_state(nnx.state(vae)):
        leaf[...] = jnp.asarray(leaf[...] + rng.normal(0, 0.1, leaf[...].shape), jnp.float32)
    return vae


def test_a_widened_vae_computes_the_same(narrow):
    wide = widen_vae.widen(narrow, dataclasses.replace(CONFIG, multipliers=(2, 6)))
    video = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (1, 5, 16, 16, 3)), jnp.float32)
    moments = [nnx.jit(vae_chunking.encode)(vae, video) for vae in (narrow, wide)]
    np.testing.assert_allclose(*moments, atol=1e-5 * float(jnp.abs(moments[0]).max()))
    z = jnp.asarray(np.random.default_rng(2).normal(size=moments[0].shape)[..., :16], jnp.float32)
    decoded = [nnx.jit(vae_chunking.decode)(vae, z) for vae in (narrow, wide)]
    np.testing.assert_allclose(*decoded, atol=1e-5 * float(jnp.abs(decoded[0]).max()))


def test_copies_of_a_channel_receive_different_gradients(narrow):
    """The coarsest level is three times as wide: its channels 0, 2 and 4 copy channel 0."""
    wide = widen_vae.widen(narrow, dataclasses.replace(CONFIG, multipliers=(1, 6)))
    graphdef, state = nnx.split(wide)
    video = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (1, 5, 16, 16, 3)), jnp.float32)
    grads = jax.jit(jax.grad(lambda state: vae_chunking.encode(nnx.merge(graphdef, state), video).std()))(state)
    kernel = grads['encoder']['mid'][0]['conv1']['kernel'][...]
    copies = widen_vae._copied_channels(8, 24, 2)
    assert np.unique(copies, return_counts=True)[1].tolist() == [3] * 8 and set(copies[:12]) == set(range(4))
    first, second = np.flatnonzero(copies == 0)[:2]
    assert np.abs(kernel[..., first] - kernel[..., second]).max() > 0.01 * np.abs(kernel[..., first]).max()


def test_the_command_writes_a_file_that_opens(narrow, tmp_path, capsys):
    exported_network.write(tmp_path / 'narrow.safetensors', key_table.module_parameters(nnx.state(narrow)), CONFIG)
    wide = tmp_path / 'wide.safetensors'
    assert widen_vae.main([str(tmp_path / 'narrow.safetensors'), '2,4', str(wide)]) == 0
    assert 'widths (4, 8) -> (8, 16)' in capsys.readouterr().out
    assert weights.load_vae(wide).config.multipliers == (2, 4)


def test_a_width_that_is_no_multiple_is_refused(narrow):
    with pytest.raises(ValueError, match='width 12: must be a multiple of 8'):
        widen_vae.widen(narrow, dataclasses.replace(CONFIG, multipliers=(1, 3)))
