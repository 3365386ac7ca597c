"""Stages by name."""

import dataclasses

import pytest

from fv_jax.core.config import ConfigError, build, to_dict
from fv_jax.stages import registry
from fv_jax.stages.autoencoder import Autoencoder, AutoencoderConfig
from fv_jax.stages.low_res import LowRes, LowResConfig
from fv_jax.stages.registry import StageConfig
from fv_jax.stages.super_res import SuperRes
from fv_jax.text.encoder import TextConfig
from tests.sampling import tiny

SUPERRES = tiny.stage_config('embedded')
LOWRES = StageConfig('lowres', dit=tiny.DIT, lowres=LowResConfig(), vae='embedded')
AUTOENCODER = StageConfig('autoencoder', autoencoder_net=tiny.VAE_CONFIG, autoencoder=AutoencoderConfig())


def test_a_name_becomes_its_stage():
    made = registry.build(SUPERRES, encoder=abs)
    assert isinstance(made, SuperRes)
    assert (made.config, made.dit, made.encoder) == (tiny.SUPERRES, tiny.DIT, abs)
    assert registry.needs_vae(SUPERRES) and registry.needs_low_res(SUPERRES)
    made = registry.build(LOWRES, encoder=abs)
    assert isinstance(made, LowRes)
    assert (made.config, made.dit, made.encoder) == (LowResConfig(), tiny.DIT, abs)
    assert registry.needs_vae(LOWRES) and not registry.needs_low_res(LOWRES)
    made = registry.build(AUTOENCODER)
    assert isinstance(made, Autoencoder) and made.vae == tiny.VAE_CONFIG
    assert not registry.needs_vae(AUTOENCODER) and not registry.needs_low_res(AUTOENCODER)


@pytest.mark.parametrize('config', [LOWRES, dataclasses.replace(SUPERRES, text=TextConfig('hash')), AUTOENCODER])
def test_a_config_survives_json(config):
    assert build(StageConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ('config', 'field', 'words'),
    [
        (SUPERRES, {'vae': None}, "vae: missing from stage 'superres'"),
        (SUPERRES, {'dit': None}, "dit: missing from stage 'superres'"),
        (SUPERRES, {'autoencoder': AutoencoderConfig()}, "autoencoder: not part of stage 'superres'"),
        (LOWRES, {'lowres': None}, "lowres: missing from stage 'lowres'"),
        (LOWRES, {'kind': 'superres'}, "lowres: not part of stage 'superres'"),
        (AUTOENCODER, {'vae': 'embedded'}, "vae: not part of stage 'autoencoder'"),
        (AUTOENCODER, {'kind': 'superres'}, "missing from stage 'superres'"),
        (AUTOENCODER, {'text': TextConfig('hash')}, "text.encoder=hash: not part of stage 'autoencoder'"),
    ],
)
def test_a_stage_has_what_it_needs_and_nothing_else(config, field, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(config, **field)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="'super' is not a choice; did you mean 'superres'"):
        build(StageConfig, {'kind': 'super'})
