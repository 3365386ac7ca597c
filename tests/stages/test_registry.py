"""Stages by name."""

import dataclasses

import pytest

from fv_jax.core.config import ConfigError, build, to_dict
from fv_jax.parallel.rules import STRATEGIES
from fv_jax.stages import registry
from fv_jax.stages.autoencoder import Autoencoder, AutoencoderConfig
from fv_jax.stages.latent_stage import EnhancementStage, LatentStage, PreviewStage
from fv_jax.stages.low_res import LowRes, LowResConfig
from fv_jax.stages.registry import StageConfig
from fv_jax.stages.super_res import SuperRes
from fv_jax.text.encoder import TextConfig
from tests.sampling import tiny

SUPERRES = tiny.stage_config('embedded')
LOWRES = StageConfig('lowres', tiny.DIT, LowResConfig(), vae='embedded')
AUTOENCODER = StageConfig('autoencoder', tiny.VAE_CONFIG, AutoencoderConfig())


def test_registry_builds_stages_by_kind():
    made = registry.build(SUPERRES, encoder=abs)
    assert isinstance(made, SuperRes)
    assert (made.config, made.network, made.encoder) == (tiny.SUPERRES, tiny.DIT, abs)
    assert registry.needs_vae(SUPERRES) and registry.needs_low_res(SUPERRES)
    made = registry.build(LOWRES, encoder=abs)
    assert isinstance(made, LowRes)
    assert (made.config, made.network, made.encoder) == (LowResConfig(), tiny.DIT, abs)
    assert registry.needs_vae(LOWRES) and not registry.needs_low_res(LOWRES)
    made = registry.build(AUTOENCODER)
    assert isinstance(made, Autoencoder) and made.network == tiny.VAE_CONFIG
    assert not registry.needs_vae(AUTOENCODER) and not registry.needs_low_res(AUTOENCODER)


@pytest.mark.parametrize('config', [LOWRES, dataclasses.replace(SUPERRES, text=TextConfig('hash')), AUTOENCODER])
def test_stage_config_round_trip_through_json(config):
    assert build(StageConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ('config', 'field', 'words'),
    [
        (SUPERRES, {'vae': None}, "vae: missing from stage 'superres'"),
        (SUPERRES, {'network': None}, "network: stage 'superres' takes a DiTConfig"),
        (SUPERRES, {'options': AutoencoderConfig()}, "options: stage 'superres' takes a SuperResConfig"),
        (LOWRES, {'options': None}, "options: stage 'lowres' takes a LowResConfig"),
        (LOWRES, {'kind': 'superres'}, "options: stage 'superres' takes a SuperResConfig"),
        (AUTOENCODER, {'vae': 'embedded'}, "vae: not part of stage 'autoencoder'"),
        (AUTOENCODER, {'kind': 'superres'}, "network: stage 'superres' takes a DiTConfig"),
        (AUTOENCODER, {'text': TextConfig('hash')}, "text.encoder=hash: not part of stage 'autoencoder'"),
    ],
)
def test_stage_config_requires_what_the_stage_needs(config, field, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(config, **field)


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        ({'kind': 'super'}, r"^config.kind=super: did you mean 'superres'\?"),
        ({}, '^config.kind=None: known: autoencoder, flow_map, lowres, superres'),
        ({'kind': 'superres', 'options': {}}, '^config: missing network'),
        ({'kind': 'superres', 'network': {}}, '^config: missing options'),
        ({'kind': 'superres', 'dit': {}}, '^config.dit: unknown key; known: kind'),
        ({'kind': 'superres', 'options': {'solver': 'heun'}}, '^config.options.solver: unknown key'),
        (
            {'kind': 'autoencoder', 'network': to_dict(tiny.DIT)},
            "^config.network: has cond_dim, embed_dim, embed_.*, which are not part of stage 'autoencoder'",
        ),
    ],
)
def test_stage_config_refuses_invalid_values(values, words):
    with pytest.raises(ConfigError, match=words):
        build(StageConfig, values)


def test_registry_finds_kinds_by_purpose():
    assert registry.find_kinds(PreviewStage) == ['lowres']
    assert registry.find_kinds(EnhancementStage) == ['superres', 'flow_map']
    assert registry.find_kinds(LatentStage) == ['lowres', 'superres', 'flow_map']


def test_registry_distinguishes_official_networks():
    assert registry.official_kinds(tiny.FIRST_DIT) == ['lowres'] and registry.official_kinds(tiny.DIT) == ['superres']
    assert registry.official_kinds(tiny.VAE_CONFIG) == ['autoencoder']
    assert registry.official_kinds(dataclasses.replace(tiny.DIT, embed_num_frames=False)) == []
    assert registry.official_kinds(dataclasses.replace(tiny.DIT, embed_interval=True)) == []


def test_registry_stages_have_a_sharding_strategy():
    for config in (LOWRES, SUPERRES, AUTOENCODER):
        assert registry.default_strategy(config) in STRATEGIES
