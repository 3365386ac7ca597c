"""The Python front door: what it refuses (what it opens, the commands' own tests use)."""

import dataclasses
import shutil

import pytest

from fv_jax import weights
from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core.command_line import format_error
from fv_jax.core.config import ConfigError
from fv_jax.stages import registry
from fv_jax.stages.registry import StageConfig
from fv_jax.text.encoder import TextConfig
from fv_jax.training import state
from fv_jax.weights import trained_runs
from fv_jax.weights.text_encoders import text_fingerprint
from tests.sampling import tiny
from tests.small_text import make_folder

STAGE = {
    'kind': 'superres',
    'vae': 'embedded',
    'network': {'embed_dim': 64, 'num_heads': 2, 'num_layers': 1, 'mlp_dim': 64, 'cond_dim': 32, 'text_dim': 8},
    'options': {},
}


def stage(latent_channels: int) -> StageConfig:
    given = STAGE | {'network': STAGE['network'] | {'latent_channels': latent_channels}}
    return config_lib.build(StageConfig, given, 'config.stage')


def test_frozen_vae_with_other_latent_channels_is_refused():
    with pytest.raises(ConfigError) as error:
        trained_runs.load_frozen_vae(stage(8))
    text = format_error(error.value)
    assert 'config.stage.vae=embedded' in text and 'have 16 channels' in text
    assert 'config.stage.network.latent_channels=8; set that to 16' in text


def test_frozen_vae_with_the_same_latent_channels():
    assert trained_runs.load_frozen_vae(stage(16)) is not None


# The VAE and the text encoder that a checkpoint names.


def save_run(folder, name='vae.safetensors', *, text=None, digests=None):
    """A run whose VAE is `name` beside it."""
    config = dataclasses.replace(tiny.stage_config(name), text=text or TextConfig())
    arrays = state.to_items(tiny.train_state(registry.build(config)))
    Checkpoints(folder).save(7, arrays, tiny.config(config), digests)
    return folder


@pytest.fixture(scope='module')
def vae(tmp_path_factory):
    path = tmp_path_factory.mktemp('vae') / 'vae.safetensors'
    tiny.save_vae(path)
    return path, weights.encoder_fingerprint(str(path))


def test_vae_of_a_run_is_found_in_its_folder_and_beside_it(vae, tmp_path):
    path, digest = vae
    run = save_run(tmp_path / 'run', digests={'vae': digest})
    with pytest.raises(FileNotFoundError, match=r'its VAE does not exist; searched vae.safetensors, .*run/vae'):
        trained_runs.open_run(run)
    shutil.copy(path, tmp_path / 'vae.safetensors')
    opened = trained_runs.open_run(run)
    assert opened.vae is not None and opened.notes == () and opened.digests == {'vae': digest}
    shutil.move(tmp_path / 'vae.safetensors', run / 'vae.safetensors')
    assert trained_runs.open_run(run).vae is not None


def test_vae_with_another_fingerprint_is_refused(vae, tmp_path):
    path, digest = vae
    run = save_run(tmp_path / 'run', str(path), digests={'vae': '0' * 16})
    with pytest.raises(
        ValueError, match=f'trained with the VAE {"0" * 16}, but .*vae.safetensors is {digest}; put'
    ) as e:
        trained_runs.open_run(run)
    assert '\n' not in str(e.value)


def test_checkpoint_without_fingerprints_is_reported(vae, tmp_path):
    run = save_run(tmp_path / 'run', str(vae[0]), text=TextConfig('hash', length=3, dim=8))
    opened = trained_runs.open_run(run)
    assert opened.digests == {} and trained_runs.open_run_text_encoder(opened).fingerprint.length == 3
    first, second = opened.notes
    assert 'does not record the fingerprint of its VAE' in first and str(vae[0]) in first
    assert 'does not record the fingerprint of its text encoder; assuming hash' in second


def test_text_encoder_of_a_run_is_found_or_refused(vae, tmp_path):
    source = make_folder(tmp_path / 'elsewhere' / 't5')
    config = TextConfig(str(source), length=9, dtype='float32')
    digests = {'vae': vae[1], 'text': text_fingerprint(config).digest}
    run = save_run(tmp_path / 'run', str(vae[0]), text=dataclasses.replace(config, encoder='t5'), digests=digests)
    opened = trained_runs.open_run(run)
    with pytest.raises(FileNotFoundError, match='its text encoder does not exist; searched t5, '):
        trained_runs.open_run_text_encoder(opened)
    shutil.copytree(source, tmp_path / 't5')
    assert trained_runs.open_run_text_encoder(opened).fingerprint.digest == digests['text']
    other = dataclasses.replace(opened, text=dataclasses.replace(opened.text, length=8))
    with pytest.raises(ValueError, match=f'trained with the text encoder {digests["text"]}, but .* is '):
        trained_runs.open_run_text_encoder(other)


def test_run_without_text_has_no_encoder(vae, tmp_path):
    run = save_run(tmp_path / 'run', str(vae[0]), digests={'vae': vae[1]})
    with pytest.raises(ConfigError, match='the stage was trained without text'):
        trained_runs.open_run_text_encoder(trained_runs.open_run(run))
