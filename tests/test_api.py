"""The Python front door: what it refuses (what it opens, the commands' own tests use)."""

import pytest

from fv_jax import api
from fv_jax.core import config as config_lib
from fv_jax.core.command_line import one_line
from fv_jax.core.config import ConfigError
from fv_jax.stages.registry import StageConfig

STAGE = {
    'kind': 'superres',
    'vae': 'embedded',
    'dit': {'embed_dim': 64, 'num_heads': 2, 'num_layers': 1, 'mlp_dim': 64, 'cond_dim': 32, 'text_dim': 8},
    'superres': {},
}


def stage(latent_channels: int) -> StageConfig:
    given = STAGE | {'dit': STAGE['dit'] | {'latent_channels': latent_channels}}
    return config_lib.build(StageConfig, given, 'config.stage')


def test_a_vae_whose_latents_do_not_fit_the_network():
    with pytest.raises(ConfigError) as error:
        api.frozen_vae(stage(8))
    text = one_line(error.value)
    assert 'config.stage.vae=embedded' in text and 'have 16 channels' in text
    assert 'config.stage.dit.latent_channels=8; set that to 16' in text


def test_a_vae_that_fits():
    assert api.frozen_vae(stage(16)) is not None
